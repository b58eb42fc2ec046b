"""Detections: chosen by score, and moved back into the original picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from trtq.data.preprocess import resolve_preprocess
from trtq.tasks.detections import Detections


def test_detections_are_chosen_by_score():
    found = Detections.of([[0, 0, 1, 1], [0, 0, 2, 2]], [0.9, 0.2], [3, 1])
    assert len(found) == 2 and len(Detections.none()) == 0
    best = found.above(0.25)
    assert best.xyxy.tolist() == [[0, 0, 1, 1]] and best.classes.tolist() == [3]
    assert found.above(0.9).scores.tolist() == pytest.approx([0.9])
    broken = Detections.of(
        [[0, 0, np.nan, 1], [0, 0, 2, 2], [0, 0, 1, 1]], [0.9, np.nan, 0.1], [0] * 3
    )
    assert broken.finite().scores.tolist() == pytest.approx([0.1])
    assert found.finite() is found


def test_a_letterbox_is_inverted():
    place = resolve_preprocess(input_size=(3, 64, 96), preset="yolo")[0].place(50, 100)
    assert (place.scale, place.offset) == ((0.64, 0.64), (32, 0))
    masks = np.zeros((1, 64, 96), dtype=np.bool_)
    masks[0, :32, 32:48] = True  # the upper left quarter of the picture
    found = Detections.of(
        [[32, 0, 48, 32]], [0.5], [0], masks=masks, keypoints=[[[48, 32, 0.75], [0, 0, 0.5]]]
    )
    moved = found.moved(place)
    assert moved.xyxy.tolist() == [[0, 0, 25, 50]] and moved.xyxy.dtype == np.float32
    assert moved.masks is not None and moved.masks.shape == (1, 100, 50)
    assert moved.masks[0, :50, :25].all() and moved.masks.sum() == 50 * 25
    assert moved.keypoints is not None and moved.keypoints.dtype == np.float32
    np.testing.assert_allclose(moved.keypoints, [[[25, 50, 0.75], [-50, 0, 0.5]]])


@pytest.mark.parametrize("size", [(200, 300), (31, 17), (64, 64), (1000, 12)])
@pytest.mark.parametrize("preset", ["yolo", "imagenet", "half"])
def test_a_mask_comes_back_where_the_picture_was(size, preset):
    """The mask of a bright rectangle in the input covers the same rectangle of the original."""
    picture = resolve_preprocess(input_size=(3, 96, 96), preset=preset, interpolation="nearest")[0]
    width, height = size
    image = Image.new("L", size)
    left, top, right, bottom = (width // 3, height // 4, width - width // 4, height - height // 3)
    image.paste(255, (left, top, right, bottom))
    values = picture.apply(image.convert("RGB"))[0].numpy()
    masks = (values >= values.max() - 1e-6)[None]
    moved = Detections.of([[0, 0, 1, 1]], [1], [0], masks=masks).moved(picture.place(*size)).masks
    assert moved is not None and moved.shape == (1, height, width)
    wanted = np.asarray(image) > 0
    place = picture.place(*size)
    inside = np.zeros_like(wanted)
    x0, y0, x1, y1 = place.to_original(np.array([[0.0, 0, 96, 96]]))[0]
    inside[int(np.ceil(y0)) : int(y1), int(np.ceil(x0)) : int(x1)] = True
    near = [max(1.0, 1.0 / s) for s in place.scale]  # pixels of the original under one of the input
    rows, columns = np.nonzero((moved[0] != wanted) & inside)
    at_edge = [
        min(abs(c - left), abs(c - right)) <= near[0] + 1
        or min(abs(r - top), abs(r - bottom)) <= near[1] + 1
        for r, c in zip(rows, columns, strict=True)
    ]
    assert all(at_edge)
