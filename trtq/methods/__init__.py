"""Quantization methods beyond plain calibration; each one is a function that writes encodings."""
