"""Recipes of all stages."""

from __future__ import annotations

import pytest

pytest_rtx = pytest.mark.skipif(
    __import__("importlib").util.find_spec("tensorrt_rtx") is None,
    reason="tensorrt_rtx is not installed",
)


# ---- run ---------------------------------------------------------------------------------------


def write_recipe(folder, images, **changes):
    text = f"""
out = "{folder}/out"
[quantize]
model = "trtq.testing.models:tiny_cnn"
data = "{images}"
input_size = "3x32x32"
preset = "imagenet"
calib_images = {changes.get("calib_images", 16)}
calib_cache = "{folder}/cache"
[evaluate]
[[build]]
target = "rtx3080"
[[build]]
target = "rtx3080"
source = "fp32"
[bench]
duration = 0.1
max_duration = 1.0
verdict = false
"""
    path = folder / "recipe.toml"
    path.write_text(text)
    return path
