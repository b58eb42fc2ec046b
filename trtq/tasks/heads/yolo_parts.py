"""YOLO heads that find more than a box: the mask of each object, or its keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from trtq.data.metrics import Array
from trtq.errors import UsageError
from trtq.tasks.detections import Detections
from trtq.tasks.facts import Facts
from trtq.tasks.heads.base import Head
from trtq.tasks.heads.yolo import BOX, Layout, Rows, prototypes

X_Y, X_Y_SCORE = 2, 3  # numbers of a keypoint


@dataclass(frozen=True, kw_only=True)
class YoloMasks(Rows):
    """YOLOv8-seg and 11-seg: behind the scores, how much of each prototype an object has.

    Attributes:
        coefficients: prototypes.
    """

    name: ClassVar[str] = "yolo-masks"
    summary: ClassVar[str] = (
        "[N, 4 + classes + M, anchors] or transposed with prototypes [N, M, h, w] (YOLOv8-seg)"
    )
    objectness: ClassVar[int] = 0
    per_cell: ClassVar[tuple[int | None, ...]] = (1, None)
    tasks: ClassVar[tuple[str, ...]] = ("segment",)
    coefficients: int
    most: int = 100

    @property
    def gives(self) -> tuple[str, ...]:  # noqa: D102
        return ("masks",)

    @classmethod
    def _is_meant(cls, facts: Facts) -> bool:
        return facts.task in (None, *cls.tasks) and facts.keypoint_shape is None

    @classmethod
    def _reading(cls, at: Layout, facts: Facts) -> Sequence[Head]:
        maps = prototypes(facts)
        classes = 0 if maps is None else at.channels - BOX - cls.objectness - maps[1]
        if maps is None or classes <= 0:
            return []
        return [
            cls(
                outputs=(at.output, maps[0]),
                classes=classes,
                coefficients=maps[1],
                last=at.last,
            )
        ]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        return [
            self._with_masks(anchors, maps, size)
            for anchors, maps in zip(self._anchors(outputs[0], size), outputs[1], strict=True)
        ]

    def _with_masks(self, anchors: Array, maps: Array, size: tuple[int, int]) -> Detections:
        detections, chosen = self._kept(anchors)
        parts = anchors[-self.coefficients :, chosen.rows].T
        return replace(detections, masks=masks_of(parts, maps, detections.xyxy, size))


@dataclass(frozen=True, kw_only=True)
class YoloObjectnessMasks(YoloMasks):
    """YOLOv5-seg and v7-seg: the same with the objectness before the scores."""

    name: ClassVar[str] = "yolo-objectness-masks"
    summary: ClassVar[str] = (
        "[N, anchors, 5 + classes + M] with prototypes [N, M, h, w] (YOLOv5-seg, v7-seg)"
    )
    objectness: ClassVar[int] = 1
    per_cell: ClassVar[tuple[int | None, ...]] = (3, None)


@dataclass(frozen=True, kw_only=True)
class YoloPose(Rows):
    """YOLOv8-pose and 11-pose: behind the scores, the keypoints of the object in pixels.

    Attributes:
        points: keypoints of an object, and numbers of each: 2, or 3 with a score.
    """

    name: ClassVar[str] = "yolo-pose"
    summary: ClassVar[str] = (
        "[N, 4 + classes + K x 3, anchors] or transposed, K in the metadata's kpt_shape "
        "(YOLOv8-pose)"
    )
    objectness: ClassVar[int] = 0
    per_cell: ClassVar[tuple[int | None, ...]] = (1, None)
    tasks: ClassVar[tuple[str, ...]] = ("pose",)
    points: tuple[int, int]

    @property
    def gives(self) -> tuple[str, ...]:  # noqa: D102
        return ("keypoints",)

    @classmethod
    def _is_meant(cls, facts: Facts) -> bool:
        return facts.task in (None, *cls.tasks) and facts.keypoint_shape is not None

    @classmethod
    def _reading(cls, at: Layout, facts: Facts) -> Sequence[Head]:
        points = facts.keypoint_shape or _points(at, facts)
        classes = at.channels - BOX - points[0] * points[1]
        if classes <= 0:
            return []
        return [cls(outputs=(at.output,), classes=classes, points=points, last=at.last)]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        return [self._with_points(anchors) for anchors in self._anchors(outputs[0], size)]

    def _with_points(self, anchors: Array) -> Detections:
        detections, chosen = self._kept(anchors)
        numbers = anchors[-self.points[0] * self.points[1] :, chosen.rows].T
        return replace(detections, keypoints=keypoints_of(numbers, self.points))


def _points(at: Layout, facts: Facts) -> tuple[int, int]:
    """Return how many keypoints there must be, where the classes are known.

    Raises:
        UsageError: they are not known.
    """
    if facts.count is None:
        raise UsageError(
            "The head yolo-pose does not know how many keypoints an object has",
            f"neither kpt_shape in the metadata nor the number of classes is known: {facts.words}",
            "Give data with labels, or the ONNX file as ultralytics exports it",
        )
    numbers = at.channels - BOX - facts.count
    each = X_Y if numbers % X_Y_SCORE else X_Y_SCORE
    return max(numbers // each, 1), each


def keypoints_of(numbers: Array, points: tuple[int, int]) -> Array:
    """Return x, y and score [M, K, 3] of numbers [M, K * 2 or 3]; a score that is missing is 1."""
    values = numbers.reshape(len(numbers), *points)
    if points[1] == X_Y_SCORE:
        return np.ascontiguousarray(values)
    return np.concatenate([values, np.ones_like(values[..., :1])], axis=2)


def masks_of(
    parts: Array, maps: Array, boxes: Array, size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Return the pixels of objects in the input, bool [M, H, W].

    The sum of the prototypes is resized to the input as torch's bilinear interpolation does it. A
    pixel is of an object where the sum is positive and the pixel is in its box.

    Args:
        parts: how much of each prototype an object has, [M, P].
        maps: prototypes, [P, h, w].
        boxes: of the objects, xyxy [M, 4].
        size: H and W.
    """
    height, width = size
    masks = np.zeros((len(parts), height, width), dtype=np.bool_)
    first = np.clip(np.ceil(boxes), 0, (width, height) * 2).astype(np.int64)
    for mask, own, (left, top, right, bottom) in zip(masks, parts, first.tolist(), strict=True):
        sums = np.tensordot(own, maps, axes=1)
        rows = _resized(sums, top, bottom, height)
        values = _resized(rows.T, left, right, width).T
        mask[top:bottom, left:right] = values > 0
    return masks


def whole_masks(maps: Array, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels of objects in the input, bool [M, H, W], of one map for each.

    Args:
        maps: logits, [M, h, w], resized bilinearly.
        size: H and W.
    """
    height, width = size
    masks = np.zeros((len(maps), height, width), dtype=np.bool_)
    for mask, own in zip(masks, maps, strict=True):
        rows = _resized(own, 0, height, height)
        mask[:] = _resized(rows.T, 0, width, width).T > 0
    return masks


def _resized(values: Array, start: int, stop: int, length: int) -> Array:
    """Return some rows of values whose first axis is resized bilinearly to a length."""
    count = len(values)
    at = (np.arange(start, max(start, stop)) + 0.5) * (count / length) - 0.5
    at = np.clip(at, 0, count - 1).astype(np.float32)
    before = at.astype(np.int64)
    share = (at - before)[:, None]
    after = np.minimum(before + 1, count - 1)
    return np.asarray(values[before] * (1 - share) + values[after] * share)
