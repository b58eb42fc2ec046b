"""Analyses for costs."""

from __future__ import annotations

from tests.support.quantize import CNN
from trtq import AnalyzeSpec, analyze


def analysis(images, folder, **changes):
    values = {
        "model": CNN,
        "data": str(images),
        "out": str(folder / "S.json"),
        "input_size": "3x32x32",
        "preset": "imagenet",
        "metric": "l2",
        "images": 8,
        "calib_images": 16,
        "bits": ["4", "8"],
        "calib_cache": str(folder / "c"),
    }
    return analyze(AnalyzeSpec.make({**values, **changes}))
