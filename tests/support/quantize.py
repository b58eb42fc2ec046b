"""Names and specs of small quantized models."""

from __future__ import annotations

from trtq import AnalyzeSpec

CNN, VIT = "trtq.testing.models:tiny_cnn", "trtq.testing.models:tiny_vit"


def analysis(images, out, **changes):
    values = {
        "model": CNN,
        "data": str(images),
        "out": str(out / "S.json"),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "calib_images": 16,
        "images": 8,
        "batch_size": 8,
        "calib_cache": str(out / "cache"),
        "bits": ("2", "4", "8"),
    }
    return AnalyzeSpec.make({**values, **changes})


SMALL = (3, 32, 32)

FILES = {"model.fp32.onnx", "model.qdq.onnx", "encodings.safetensors", "quantize.json"}
