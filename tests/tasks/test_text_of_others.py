"""PP-OCRv6, as the package rapidocr has it, on lines of text that are drawn here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

import trtq
from tests.support.packages import packaged

CALIBRATION = 32
WORDS = (
    *("engine", "tensor", "quantize", "precision", "layer", "range", "scale", "network"),
    *("latency", "kernel", "graph", "memory", "driver", "release", "board", "camera"),
    *("signal", "sample", "image", "total", "amount", "invoice", "number", "street"),
    *("address", "Tuesday", "October", "2026", "314", "1,250.00", "$99", "A4", "GPU"),
    *("INT8", "FP16"),
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def drawn_lines(seed: int, lines: int, size: tuple[int, int]) -> tuple[torch.Tensor, str]:
    """Return an image as PaddleOCR takes it (BGR, -1 to 1, [3, H, W]) and the text in it."""
    rng, (height, width) = np.random.default_rng(seed), size
    picture = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(180, 256, 3)))
    pen, texts = ImageDraw.Draw(picture), []
    for i in range(lines):
        texts.append(" ".join(rng.choice(WORDS, 2)))
        font = ImageFont.load_default(24 + int(rng.integers(0, 8)))
        ink = tuple(int(v) for v in rng.integers(0, 90, 3))
        pen.text((6, 6 + i * height // lines), texts[-1], font=font, fill=ink)
    pixels = np.asarray(picture, dtype=np.float32)[:, :, ::-1] / 127.5 - 1.0
    pixels = pixels + rng.normal(0.0, 0.05, pixels.shape)
    return torch.from_numpy(np.float32(pixels.transpose(2, 0, 1))), "\n".join(texts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("rapidocr")


def test_lines_are_read_as_the_float_model_reads_them(folder, tmp_path):
    path = packaged("rapidocr==3.10.0", "*_rec_small.onnx", folder)
    samples = [drawn_lines(i, 1, (48, 320)) for i in range(CALIBRATION + 48)]
    made = trtq.quantize(
        trtq.load(str(path), input_size=(3, 48, 320)),
        samples[:CALIBRATION],
        task="text-lines",
        calib_images=CALIBRATION,
        calib_cache=str(tmp_path),
    )
    seen = made.evaluate(samples[CALIBRATION:], batch_size=1)
    own, theirs = (side["character accuracy"].value for side in (seen.figures, seen.reference))
    assert theirs > 95.0  # it does read them
    assert own >= theirs - 0.5
    assert seen.agreement["agreement character accuracy"].value >= 99.5


def test_pixels_of_text_are_those_of_the_float_model(folder, tmp_path):
    path = packaged("rapidocr==3.10.0", "*_det_small.onnx", folder)
    samples = [drawn_lines(i, 4, (320, 320))[0] for i in range(CALIBRATION + 24)]
    made = trtq.quantize(
        trtq.load(str(path), input_size=(3, 320, 320)),
        samples[:CALIBRATION],
        task="segmentation",
        calib_images=CALIBRATION,
        calib_cache=str(tmp_path),
    )
    seen = made.evaluate(samples[CALIBRATION:], batch_size=1)
    assert seen.agreement["agreement"].value >= 99.5
    assert seen.agreement["agreement mIoU"].value >= 97.0
