"""Heads with masks and keypoints, and heads that end with a selection of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trtq.errors import UsageError
from trtq.tasks.facts import Facts
from trtq.tasks.heads import find_head
from trtq.tasks.heads.yolo_parts import masks_of

SIZE = (64, 64)
CELLS = 84


def masked(names: int = 0, **more) -> Facts:
    classes = tuple(f"c{i}" for i in range(names))
    outputs = {"output0": (1, 4 + 2 + 3, CELLS), "output1": (1, 3, 16, 16)}
    return Facts(outputs=outputs, size=SIZE, classes=classes, **more)


def test_masks_are_sums_of_prototypes_inside_the_box():
    head = find_head(masked())
    assert (head.name, head.classes, head.outputs) == ("yolo-masks", 2, ("output0", "output1"))
    values = np.zeros((1, 9, CELLS), dtype=np.float32)
    values[0, :, 3] = [16, 16, 24, 16, 0.25, 0.5, 1, 0, -1]
    maps = np.zeros((1, 3, 16, 16), dtype=np.float32)
    maps[0, 0] = 0.5
    maps[0, 2, :, 4:] = 1  # the third prototype takes away what is right of pixel 16
    (found,) = head.decode({"output0": values, "output1": maps}, SIZE)
    assert found.xyxy.tolist() == [[4, 8, 28, 24]] and found.classes.tolist() == [1]
    assert found.masks is not None and found.masks.shape == (1, 64, 64)
    # Between the centres of columns 3 and 4, pixels 14 and 18, the sum falls from 0.5 to -0.5.
    assert found.masks[0, 8:24, 4:16].all() and found.masks.sum() == 16 * 12
    (none,) = head.decode({"output0": values * 0, "output1": maps}, SIZE)
    assert none.masks is not None and none.masks.shape == (0, 64, 64)


def test_yolov5_seg_has_an_objectness_before_the_scores():
    """Three anchors a cell, the anchors first, as its own export writes them."""
    anchors = 3 * CELLS
    outputs = {"output0": (1, anchors, 5 + 2 + 3), "output1": (1, 3, 16, 16)}
    head = find_head(Facts(outputs=outputs, size=SIZE))
    assert (head.name, head.classes, head.last) == ("yolo-objectness-masks", 2, True)
    assert head.outputs == ("output0", "output1") and head.gives == ("masks",)
    values = np.zeros((1, anchors, 10), dtype=np.float32)
    values[0, 100] = [16, 16, 24, 16, 0.5, 0.25, 0.5, 1, 0, -1]
    maps = np.zeros((1, 3, 16, 16), dtype=np.float32)
    maps[0, 0] = 0.5
    maps[0, 2, :, 4:] = 1
    (found,) = head.decode({"output0": values, "output1": maps}, SIZE)
    assert found.classes.tolist() == [1] and found.scores.tolist() == [0.25]
    assert found.masks[0, 8:24, 4:16].all() and found.masks.sum() == 16 * 12
    opened = {"output0": (1, "anchors", 10), "output1": (1, 3, 16, 16)}
    with pytest.raises(UsageError, match="yolo-masks with 3 classes or .* yolo-objectness-masks"):
        find_head(Facts(outputs=opened, size=SIZE))
    labels = Facts(outputs=opened, size=SIZE, classes=("a", "b"))
    assert find_head(labels).name == "yolo-objectness-masks"


@pytest.mark.parametrize("size", [(64, 64), (60, 100), (16, 20), (8, 33)])
def test_masks_as_torch_resizes_them(size):
    random = np.random.default_rng(1)
    maps = random.standard_normal((4, 16, 20)).astype(np.float32)
    parts = random.standard_normal((5, 4)).astype(np.float32)
    height, width = size
    corner = random.uniform(-5, 0.6 * min(size), (5, 2))
    boxes = np.concatenate([corner, corner + random.uniform(1, 40, (5, 2))], 1).astype(np.float32)
    sums = torch.from_numpy(np.tensordot(parts, maps, axes=1))[None]
    whole = torch.nn.functional.interpolate(sums, size, mode="bilinear")[0].numpy() > 0
    x, y = np.arange(width)[None, None], np.arange(height)[None, :, None]
    left, top, right, bottom = (boxes[:, i, None, None] for i in range(4))
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    assert np.array_equal(masks_of(parts, maps, boxes, size), whole & inside)


def test_metadata_say_what_an_output_with_prototypes_is():
    assert find_head(masked(metadata={"task": "segment"})).name == "yolo-masks"
    assert find_head(masked(metadata={"task": "detect"})).classes == 5
    with pytest.raises(
        UsageError, match="have the 3 classes of the labels: output0 and output1 as"
    ):
        find_head(masked(names=3))
    with pytest.raises(UsageError, match="yolo-masks cannot read the outputs.*with prototypes"):
        find_head(Facts(outputs={"output0": (1, 9, CELLS)}, size=SIZE), "yolo-masks")


def posed(channels: int, shape: str = "[2, 3]", **more) -> Facts:
    metadata = {"kpt_shape": shape, "task": "pose"} if shape else {}
    return Facts(outputs={"o": (1, channels, CELLS)}, size=SIZE, metadata=metadata, **more)


def test_keypoints_are_behind_the_scores():
    head = find_head(posed(11))
    assert (head.name, head.classes) == ("yolo-pose", 1)
    values = np.zeros((1, 11, CELLS), dtype=np.float32)
    values[0, :, 9] = [16, 16, 8, 8, 0.5, 13, 14, 0.9, 17, 18, 0.25]
    (found,) = head.decode({"o": values}, SIZE)
    assert found.xyxy.tolist() == [[12, 12, 20, 20]] and found.keypoints is not None
    np.testing.assert_allclose(found.keypoints, [[[13, 14, 0.9], [17, 18, 0.25]]])
    flat = find_head(posed(9, "(2, 2)"))
    (found,) = flat.decode({"o": np.delete(values, [7, 10], axis=1)}, SIZE)
    assert found.keypoints is not None
    np.testing.assert_allclose(found.keypoints, [[[13, 14, 1], [17, 18, 1]]])


def test_the_number_of_keypoints_must_be_known():
    assert find_head(posed(11, "")).name == "yolo"
    known = find_head(posed(11, "", classes=("person",)), "yolo-pose")
    assert (known.classes, getattr(known, "points", None)) == (1, (2, 3))
    with pytest.raises(
        UsageError, match="not know how many keypoints.*neither kpt_shape.*Give dat"
    ):
        find_head(posed(11, ""), "yolo-pose")


def selected(rows=300, numbers: int = 6, **more) -> Facts:
    return Facts(outputs={"output0": (1, rows, numbers)}, size=SIZE, **more)


def test_end_to_end_rows_are_detections():
    head = find_head(selected())
    assert (head.name, head.classes) == ("end-to-end", None)
    rows = np.zeros((2, 300, 6), dtype=np.float32)
    rows[1, 0] = [1, 2, 3, 4, 0.5, 7]
    rows[1, 1] = [5, 6, 7, 8, 0.75, 0]
    rows[1, 2] = [1, 2, 3, np.nan, 0.9, 1]
    rows[1, 3] = [1, 2, 3, 4, np.nan, 1]
    rows[1, 4] = [1, 2, 3, 4, 0.9, -1]
    first, second = head.decode({"output0": rows}, SIZE)
    assert len(first) == 0
    assert second.xyxy.tolist() == [[5, 6, 7, 8], [1, 2, 3, 4]]
    assert second.scores.tolist() == [0.75, 0.5] and second.classes.tolist() == [0, 7]


def test_end_to_end_rows_with_masks_and_keypoints():
    outputs = {"output0": (1, 30, 8), "output1": (1, 2, 16, 16)}
    head = find_head(Facts(outputs=outputs, size=SIZE, metadata={"task": "segment"}))
    assert head.name == "end-to-end"
    rows = np.zeros((1, 30, 8), dtype=np.float32)
    rows[0, 2] = [0, 0, 8, 8, 0.5, 1, 1, 0]
    (found,) = head.decode({"output0": rows, "output1": np.ones((1, 2, 16, 16))}, SIZE)
    assert found.masks is not None and found.masks[0, :8, :8].all() and found.masks.sum() == 64
    posed_head = find_head(selected(30, 12, metadata={"task": "pose", "kpt_shape": "[2, 3]"}))
    rows = np.zeros((1, 30, 12), dtype=np.float32)
    rows[0, 5] = [0, 0, 8, 8, 0.5, 0, 1, 2, 0.5, 3, 4, 1]
    (found,) = posed_head.decode({"output0": rows}, SIZE)
    assert found.keypoints is not None
    assert found.keypoints.tolist() == [[[1, 2, 0.5], [3, 4, 1]]]


def test_six_numbers_can_be_something_else():
    assert find_head(selected(CELLS, classes=("a", "b"))).name == "yolo"
    assert find_head(selected(3 * CELLS)).name == "yolo-objectness"
    with pytest.raises(UsageError, match="yolo-objectness with 1 classes or output0 as end-to-end"):
        find_head(Facts(outputs={"output0": (1, 300, 6)}, classes=("a",)))
    with pytest.raises(UsageError, match="Cannot read rotated boxes"):
        find_head(selected(metadata={"task": "obb"}))
