"""Engines: targets, builders, manifests."""
