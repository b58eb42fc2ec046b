"""What a user gives beside the preprocessing of a file, and what remains of it."""

from __future__ import annotations

import msgspec
import pytest

from trtq.data.preprocess import Preprocess
from trtq.data.stored_preprocess import file_preprocess
from trtq.errors import UsageError
from trtq.specs.inputs import PictureSpec

SHAPE = ["batch", 3, 224, 224]
STORED = Preprocess(
    input_size=(3, 224, 224),
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    resize=256,
    crop=224,
    interpolation="bicubic",
)


def found(stored: Preprocess | None = STORED, **given) -> Preprocess:
    plain = None if stored is None else msgspec.to_builtins(stored)
    return file_preprocess(PictureSpec(**given).picture, plain, SHAPE, {})[0]


def test_nothing_is_given():
    assert found() == STORED
    assert found(None) == Preprocess(
        input_size=(3, 224, 224),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        resize=256,
        crop=None,
    )


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"mean": (0.5,)}, {"mean": (0.5, 0.5, 0.5)}),
        ({"interpolation": "nearest"}, {"interpolation": "nearest"}),
        ({"resize": 300}, {"resize": 300}),
        (
            {"channel_order": "bgr"},
            {"channel_order": "bgr", "mean": (0.3, 0.2, 0.1), "std": (0.6, 0.5, 0.4)},
        ),
        (
            {"preset": "yolo"},
            {
                "mean": (0.0, 0.0, 0.0),
                "std": (1.0, 1.0, 1.0),
                "resize": None,
                "crop": None,
                "interpolation": "bilinear",
                "fit": "letterbox",
                "fill": 114,
            },
        ),
        ({"fit": "letterbox"}, {"fit": "letterbox", "fill": 114, "resize": None, "crop": None}),
        (
            {"preset": "cifar10"},
            {
                "mean": (0.4914, 0.4822, 0.4465),
                "std": (0.2470, 0.2435, 0.2616),
                "resize": None,
                "crop": None,
                "interpolation": "bilinear",
            },
        ),
        (
            {"input_size": (3, 112, 112)},
            {"input_size": (3, 112, 112), "resize": 128, "crop": None},
        ),
    ],
    ids=str,
)
def test_what_is_given_changes_that_and_what_follows_from_it(given, changed):
    assert found(**given) == msgspec.structs.replace(STORED, **changed)


def test_an_image_that_is_squeezed_stays_so():
    squeezed = msgspec.structs.replace(STORED, resize=None, crop=None)
    assert found(squeezed, std=(0.5,)) == msgspec.structs.replace(squeezed, std=(0.5, 0.5, 0.5))


def test_pixels_as_they_are_have_no_mean():
    plain = msgspec.structs.replace(STORED, dtype="uint8", mean=(0.0,) * 3, std=(1.0,) * 3)
    assert found(plain, interpolation="nearest").dtype == "uint8"
    for given in ({}, {"input_dtype": "uint8"}):
        with pytest.raises(UsageError, match="--mean have no effect on a uint8 input"):
            found(plain, mean=(0.5,), **given)
    # The numbers of a file of pixels are no normalisation.
    assert found(plain, input_dtype="float32").mean == (0.485, 0.456, 0.406)


def test_a_preprocessing_that_cannot_be_read():
    with pytest.raises(UsageError, match="Cannot read the preprocessing in the file: .*mean"):
        file_preprocess(PictureSpec().picture, {"mean": 3}, SHAPE, {})
