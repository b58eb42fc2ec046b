"""ONNX export: Q/DQ and float files, their metadata, and their parity with the simulation."""
