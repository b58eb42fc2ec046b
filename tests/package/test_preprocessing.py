"""What packages carry of the preprocessing is what trtq does, without torch."""

from __future__ import annotations

import ast
import importlib.util
import io

import msgspec
import numpy as np
import pytest
from PIL import Image

from trtq.data.preprocess import Preprocess
from trtq.package.preprocessing import Preprocessing
from trtq.package.template import FOLDER, template

BASE = {"input_size": (3, 24, 32), "mean": (0.5,), "std": (0.25,), "resize": None, "crop": None}
SETTINGS = [
    {},
    {"resize": 40, "crop": 32, "interpolation": "bicubic"},
    {"resize": 28, "crop": 36, "interpolation": "nearest"},
    {"resize": 30, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "channel_order": "bgr"},
    {"fit": "letterbox", "fill": 114},
    {"fit": "letterbox", "input_size": (1, 32, 24), "fill": 7},
    {"dtype": "uint8", "mean": (0.0,), "std": (1.0,)},
]


@pytest.fixture(scope="module")
def image_input():
    spec = importlib.util.spec_from_file_location("image_input", FOLDER / "image_input.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stored_form_has_the_same_fields():
    def form(kind):
        return {f.name: str(f.type) for f in msgspec.structs.fields(kind)}

    assert form(Preprocessing) == form(Preprocess)


@pytest.mark.parametrize("size", [(50, 41), (20, 64), (32, 24)], ids=str)
@pytest.mark.parametrize("change", SETTINGS, ids=str)
def test_an_image_becomes_the_same_input(change, size, image_input):
    ours = Preprocess(**{**BASE, **change})
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    how = msgspec.json.decode(msgspec.json.encode(ours))
    how = msgspec.to_builtins(msgspec.convert(how, Preprocessing))
    got = image_input.prepared(image, how)
    wanted = ours.apply(image).numpy()
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)


def test_the_short_side_is_exact_for_every_size(image_input):
    how = {"input_size": (3, 224, 224), "resize": 224, "crop": None}
    for w, h in ((55, 55), (49, 98), (180, 40)):
        size, _ = image_input.steps(how, w, h)
        assert size == (224 * w // min(w, h), 224 * h // min(w, h))


def test_images_of_other_modes(image_input):
    rng = np.random.default_rng(0)

    def saved(image: Image.Image, **options) -> bytes:
        data = io.BytesIO()
        image.save(data, "PNG", **options)
        return data.getvalue()

    color = Image.fromarray(rng.integers(0, 256, (6, 5, 3)).astype(np.uint8))
    palette = color.convert("P", palette=Image.Palette.ADAPTIVE)
    assert image_input.read_image(saved(palette, transparency=0)).mode == "RGB"
    assert image_input.read_image(saved(color.convert("1"))).mode == "L"
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter
    assert image_input.read_image(saved(color, exif=exif)).size == (6, 5)
    deep = Image.fromarray(rng.integers(0, 65536, (6, 5)).astype(np.uint16))
    with pytest.raises(
        ValueError, match="the image has samples of mode I;16; convert it to 8 bits"
    ):
        image_input.read_image(saved(deep))
    with pytest.raises(ValueError, match="images have 1 or 3 channels, the model takes 4"):
        image_input.prepared(color, {**BASE, "input_size": (4, 8, 8)})


def test_words_of_a_preprocessing():
    words = [Preprocessing(**{**BASE, **change}).words for change in SETTINGS]
    assert words[0].startswith("RGB, squeezed to 32x24 (bilinear), (pixel / 255 - mean) / std")
    assert words[1].startswith("RGB, short side 40, centre 32x32, 32x24 (bicubic), ")
    assert words[3].startswith("BGR, short side 30, centre 32x24, 32x24")
    assert words[5].startswith("gray, letterbox 24x32 with borders of 7")
    assert words[6] == "RGB, squeezed to 32x24 (bilinear), pixels of 0 to 255"


@pytest.mark.parametrize("name", ["run.py", "triton_model.py"])
def test_programs_are_whole(name):
    text = template(name).decode()
    assert "def prepared(image, how):" in text
    assert "# ----" not in text
    ast.parse(text, feature_version=(3, 8))
