"""Cost models: MACs, bytes, energy, roofline latency."""
