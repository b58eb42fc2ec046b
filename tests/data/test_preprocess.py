"""What the preprocessing of images computes, beside torchvision's."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv

import trtq
from trtq.artifact import digest_of
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.data.source import PIXELS
from trtq.errors import DataError
from trtq.testing.images import write_images


@pytest.mark.parametrize("size", [(55, 55), (49, 98), (180, 40), (640, 480)], ids=str)
def test_images_are_resized_and_cut_as_by_torchvision(size):
    image = Image.effect_noise(size, 80).convert("RGB")
    ours = Preprocess(
        input_size=(3, 224, 224), mean=(0.0,) * 3, std=(1.0,) * 3, resize=224, crop=None
    )
    wanted = tv.center_crop(tv.resize(image, [224]), [224, 224])
    assert ours.place(*size).scale == pytest.approx(
        [n / o for n, o in zip(tv.resize(image, [224]).size, size, strict=True)]
    )
    torch.testing.assert_close(ours.apply(image), tv.to_tensor(wanted))


def test_images_that_lie_elsewhere_need_another_number_in_keys():
    """Statistics of images are kept under keys with this number: raise it with the digest."""
    plain = {"input_size": (3, 224, 224), "mean": (0.0,) * 3, "std": (1.0,) * 3}
    ways = (
        Preprocess(**plain, resize=256, crop=224),
        Preprocess(**plain, resize=235, crop=None),
        Preprocess(**plain, resize=None, crop=None, fit="letterbox"),
    )
    sizes = [(w, h) for w in range(31, 700, 37) for h in range(29, 700, 41)]
    places = [(w.place(*size).scale, w.place(*size).offset) for w in ways for size in sizes]
    rounded = [[[round(v, 6) for v in pair] for pair in place] for place in places]
    assert (PIXELS, digest_of(rounded)[:16]) == (3, "1afe494770f02007")


def test_numbers_for_other_channels_are_not_compared_with_the_models_own():
    hints = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1), "input_size": (4, 8, 8)}
    four, notes = resolve_preprocess(hints=hints, mean=(0.1, 0.2, 0.3, 0.4), std=(1.0,) * 4)
    assert four.mean == (0.1, 0.2, 0.3, 0.4) and not notes


def test_the_models_own_numbers_are_compared_in_the_order_of_its_channels():
    hints = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.1)}
    _, same = resolve_preprocess(hints=hints, mean=(0.3, 0.4, 0.5), channel_order="bgr")
    _, other = resolve_preprocess(hints=hints, mean=(0.5, 0.4, 0.3), channel_order="bgr")
    assert same == []
    assert other == ["--mean 0.5,0.4,0.3 differs from the model's own 0.3,0.4,0.5"]


def test_a_map_that_says_more_than_memory_holds_is_named(tmp_path):
    write_images(tmp_path / "images", 1)
    (tmp_path / "maps").mkdir()
    name = next(p.stem for p in (tmp_path / "images").rglob("*.*"))
    header = io.BytesIO()
    form = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7)}
    np.lib.format.write_array_header_1_0(header, form)
    (tmp_path / f"maps/{name}.npy").write_bytes(header.getvalue() + bytes(64))
    samples = trtq.samples(f"{tmp_path}/images", masks=f"{tmp_path}/maps")
    with pytest.raises(DataError, match="it is no array of NumPy"):
        next(samples.targets())


@pytest.mark.parametrize("masks", [False, True])
def test_an_image_that_its_short_side_makes_huge_is_named(tmp_path, masks):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
        Image.new("L", (400_000, 1)).save(tmp_path / name / "a.png")
    given = {"masks": f"{tmp_path}/masks"} if masks else {}
    samples = trtq.samples(f"{tmp_path}/images", **given)
    why = "its 400000x1 pixels would become 102400000x256, the limit is"
    with pytest.raises(DataError, match=rf"Cannot resize a.png of .*: {why}"):
        next(samples.targets()) if masks else next(samples.batches(1))
