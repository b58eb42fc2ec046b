"""ONNX files: Q/DQ and float, their metadata, and the proof that they compute what torch simulated."""
