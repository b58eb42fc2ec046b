"""The files of a quantized model."""

from __future__ import annotations

FP32 = "model.fp32.onnx"
QDQ = "model.qdq.onnx"
ENCODINGS = "encodings.safetensors"
RECORD = "quantize.json"
FILES = (FP32, QDQ, ENCODINGS, RECORD)
STAGING = ".trtq-new"
