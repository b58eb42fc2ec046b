"""Quantization-aware training: the graph, its learned ranges, the loop and its state."""
