"""Meters of power and energy: one protocol, one file a kind; a meter that is not there says why."""
