"""Quantization methods, each a file of its own and a line in the registry; every one writes the same encodings."""
