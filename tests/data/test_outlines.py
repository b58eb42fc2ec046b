"""Masks of annotations: polygons and run lengths, decoded as pycocotools does."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from trtq.data.outlines import Outlines, RunLengths, areas, packed
from trtq.errors import DataError


def decoded(runs) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pycocotools asks NumPy in an old way
        return coco_mask.decode(runs).astype(bool)


def test_outlines_of_every_form():
    # Columns of a picture 3 high and 4 wide: the second one, and one pixel of the third.
    plain = RunLengths([3, 3, 1, 1, 4], (3, 4))
    square = [[1.0, 0.0, 3.0, 0.0, 3.0, 2.0, 1.0, 2.0]]
    outlines = Outlines(of=(plain, square, []), size=(3, 4))
    masks = outlines.decoded()
    assert masks.shape == (3, 3, 4) and masks.dtype == np.bool_
    assert masks[0].astype(int).tolist() == [[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]]
    assert masks[1].astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert not masks[2].any() and areas(outlines.packed()).tolist() == [4, 4, 0]
    again = Outlines(of=tuple(map(RunLengths.packed, outlines.packed())), size=(3, 4))
    assert np.array_equal(again.decoded(), masks)
    assert Outlines(of=(), size=(3, 4)).decoded().shape == (0, 3, 4)


def test_random_masks_as_pycocotools_decodes_them():
    random = np.random.default_rng(0)
    masks = random.uniform(size=(9, 33, 70)) < np.linspace(0, 1, 9)[:, None, None]
    runs = packed(masks)
    assert areas(runs).tolist() == masks.sum(axis=(1, 2)).tolist()
    outlines = Outlines(of=tuple(map(RunLengths.packed, runs)), size=(33, 70))
    assert np.array_equal(outlines.decoded(), masks)
    polygons = [random.uniform(0, 33, 2 * n).tolist() for n in (3, 5, 9)]
    whole = Outlines(of=(polygons,), size=(33, 70)).decoded()[0]
    merged = coco_mask.merge(coco_mask.frPyObjects(polygons, 33, 70))
    assert np.array_equal(whole, decoded(merged))


@pytest.mark.parametrize(
    ("outline", "text"),
    [
        (
            [[1.0, 2.0, 3.0]],
            "a polygon has 3 numbers, expected x and y of three points. Export the",
        ),
        ([[1.0] * 7], "a polygon has 7 numbers"),
        ([[0.0, 0.0, 1.0, 0.0, 1e12, 1e12]], "a polygon is far outside the image of 4x3 pixels"),
        ([[0.0, 0.0, 1.0, 0.0, 1.0, float("nan")]], "a polygon is far outside"),
        (RunLengths([12], (4, 3)), "it is for 3x4 pixels, the image has 4x3"),
        (RunLengths([5, 6], (3, 4)), "its run lengths are 11 pixels, the image has 12"),
        (RunLengths([14, -2], (3, 4)), "its run lengths are 12 pixels"),
        (RunLengths([], (3, 4)), "its run lengths are 0 pixels"),
        (RunLengths("", (3, 4)), "its run lengths are 0 pixels"),
        (RunLengths("a", (3, 4)), "it ends within a run length"),
        (RunLengths("12345", (3, 4)), "the image has 12"),
    ],
)
def test_outlines_that_are_damaged(outline, text):
    with pytest.raises(DataError, match=text):
        Outlines(of=(outline,), size=(3, 4)).packed()
