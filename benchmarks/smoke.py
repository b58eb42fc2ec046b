"""``--smoke``: run every script here in seconds, on tiny models and synthetic images.

It shows that a script still runs; its figures mean nothing. Results are written to a temporary
file, never to ``results/``; other tools, such as ModelOpt, are not needed. Child processes use the
smoke form, too.
"""

from __future__ import annotations

import argparse
import atexit
import io
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
VARIABLE, DATA = "TRTQ_BENCHMARK_SMOKE", "TRTQ_BENCHMARK_SMOKE_DATA"
SMOKE = "--smoke" in sys.argv or bool(os.environ.get(VARIABLE))
TINY = {"tiny": "trtq.testing.models:tiny_cnn"}
CLASSES = tuple(f"n{i:08d}" for i in range(4))


def few(usual: T, smoke: T) -> T:
    """Return what a setting is, or what it is in the smoke form."""
    return smoke if SMOKE else usual


def arguments(parser: argparse.ArgumentParser, **smoke: Any) -> argparse.Namespace:
    """Parse the command line, with ``--smoke`` as an option.

    In the smoke form no option is required and ``smoke`` has the defaults.
    """
    parser.add_argument(
        "--smoke",
        action="store_true",
        help="in seconds, on tiny models and synthetic images: does it still run?",
    )
    if not SMOKE:
        return parser.parse_args()
    os.environ[VARIABLE] = "1"
    os.environ["TRTQ_DATA"] = str(data())
    for action in parser._actions:
        action.required = False
    parser.set_defaults(**smoke)
    args = parser.parse_args()
    args.out = scratch() / "result.md"
    return args


def scratch() -> Path:
    """Return a folder that is gone when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="trtq-smoke-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def data() -> Path:
    """Return a folder like the one that ``TRTQ_DATA`` names.

    It has synthetic images, and random weights beside it. It is made once for all processes.
    """
    if DATA not in os.environ:
        folder = scratch() / "data"
        folder.mkdir()
        _write(folder)
        os.environ[DATA] = str(folder)
    return Path(os.environ[DATA])


def _write(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)

    def png(size: tuple[int, int], classes: int = 0) -> bytes:
        pixels = rng.integers(0, classes or 256, size if classes else (*size, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    with zipfile.ZipFile(folder / "cifar10.zip", "w") as archive:
        for split, count in (("train", 24), ("test", 8)):
            for i in range(10 * count):
                archive.writestr(f"{split}/{i % 10}/{i:04d}.png", png((32, 32)))
    with zipfile.ZipFile(folder / "imagenet-sample.zip", "w") as archive:
        for i in range(48):
            archive.writestr(f"{CLASSES[i % len(CLASSES)]}/{i:03d}.png", png((40, 40)))
    (folder / "imagenet-wnids.json").write_text(json.dumps(CLASSES))
    with zipfile.ZipFile(folder / "camvid.zip", "w") as archive:
        for split, count in (("train", 8), ("val", 4), ("test", 4)):
            for i in range(count):
                archive.writestr(f"{split}/{i:03d}.png", png((48, 64)))
                archive.writestr(f"{split}annot/{i:03d}.png", png((48, 64), 12))
