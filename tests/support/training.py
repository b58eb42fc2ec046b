"""Specs of training."""

from __future__ import annotations

from pathlib import Path

from tests.support.quantize import CNN
from trtq import FinetuneSpec


def asked(images: Path, ptq: Path, out: Path, **changes):
    values = {
        "model": CNN,
        "data": str(images),
        "val": str(images),
        "out": str(out),
        "encodings": str(ptq / "encodings.safetensors"),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "epochs": 2,
        "batch_size": 8,
        "parity_images": 8,
    }
    return FinetuneSpec.make({**values, **changes})
