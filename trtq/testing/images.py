"""Images made on the spot: smooth colours and shapes, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_images(
    folder: Path, count: int, *, size: int = 40, seed: int = 0, suffix: str = ".png"
) -> Path:
    """Write ``count`` smooth random images into ``folder`` and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for i in range(count):
        coarse = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(
            folder / f"{i:03d}{suffix}"
        )
    return folder


def write_classes(root: Path, classes: int, per_class: int, *, size: int = 40) -> Path:
    """Write a folder of class folders and return it."""
    for c in range(classes):
        write_images(root / f"class{c}", per_class, size=size, seed=c)
    return root


def write_scenes(
    root: Path, count: int, *, size: int = 40, seed: int = 0, void: int = 255
) -> tuple[Path, Path]:
    """Write ``count`` images and their masks and return the two folders.

    Class 0 is dark, 1 is red, 2 is blue; the border of every mask is ``void``.
    """
    images, masks = root / "images", root / "masks"
    images.mkdir(parents=True, exist_ok=True)
    masks.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    colours = np.array([[30, 30, 30], [200, 40, 40], [40, 40, 200]])
    for i in range(count):
        classes = (
            rng.integers(0, 3, (4, 4))
            .repeat(-(-size // 4), 0)
            .repeat(-(-size // 4), 1)[:size, :size]
        )
        pixels = colours[classes] + rng.integers(-25, 26, (size, size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / f"{i:03d}.png")
        mask = classes.astype(np.uint8)
        mask[0], mask[-1], mask[:, 0], mask[:, -1] = void, void, void, void
        Image.fromarray(mask).save(masks / f"{i:03d}.png")
    return images, masks
