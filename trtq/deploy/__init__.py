"""Building and measuring on a device over SSH."""
