"""Images made on the spot: smooth colours and shapes, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(folder: Path, count: int, *, size: int = 40, seed: int = 0, suffix: str = ".png") -> Path:
    """Write ``count`` smooth random images into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / f"{i:03d}{suffix}")
    return folder


def write_classes(root: Path, classes: int, per_class: int, *, size: int = 40) -> Path:
    """Write a folder of class folders and return it."""
    for c in range(classes):
        write_images(root / f"class{c}", per_class, size=size, seed=c)
    return root
