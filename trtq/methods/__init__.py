"""Quantization methods: each is a file of its own and a line in the registry.

All of them write the same encodings.
"""
