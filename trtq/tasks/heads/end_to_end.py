"""Heads that end with their own selection: one row for each detection, no suppression needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from trtq.data.metrics import Array
from trtq.tasks.detections import Detections
from trtq.tasks.facts import Facts, Shape
from trtq.tasks.heads.base import Head, ranked
from trtq.tasks.heads.yolo import anchors_a_cell, prototypes
from trtq.tasks.heads.yolo_parts import keypoints_of, masks_of

ROW = 6  # left, top, right, bottom, score, class
TASKS = (None, "detect", "segment", "pose")


@dataclass(frozen=True, kw_only=True)
class EndToEnd(Head):
    """YOLOv10, YOLO26 and ultralytics' exports with NMS.

    Attributes:
        points: keypoints of an object, and numbers of each; None without them.
    """

    name: ClassVar[str] = "end-to-end"
    summary: ClassVar[str] = (
        "[N, K, 6]: left, top, right, bottom in pixels, score, class (YOLOv10, YOLO26); mask "
        "coefficients or keypoints behind them"
    )
    points: tuple[int, int] | None = None

    @property
    def gives(self) -> tuple[str, ...]:  # noqa: D102
        return ("masks",) if len(self.outputs) > 1 else ("keypoints",) if self.points else ()

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        if not by_name and (facts.task not in TASKS or facts.is_rt_detr):
            return []
        maps, points = prototypes(facts), facts.keypoint_shape
        extra = maps[1] if maps else points[0] * points[1] if points else 0
        return [
            cls(outputs=(name, maps[0]) if maps else (name,), points=None if maps else points)
            for name, shape in facts.outputs.items()
            if _is_selection(shape, ROW + extra, facts)
        ]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        maps: Sequence[Array | None] = [None] * len(outputs[0])
        if len(outputs) > 1:
            maps = list(outputs[1])
        return [self._read(rows, own, size) for rows, own in zip(outputs[0], maps, strict=True)]

    def _read(self, rows: Array, maps: Array | None, size: tuple[int, int]) -> Detections:
        detections, kept = ranked(
            rows[:, :4], rows[:, 4], rows[:, 5], least=self.least_score, most=self.most
        )
        extra = rows[kept, ROW:]
        if maps is not None:
            return replace(detections, masks=masks_of(extra, maps, detections.xyxy, size))
        if self.points is not None:
            return replace(detections, keypoints=keypoints_of(extra, self.points))
        return detections


def _is_selection(shape: Shape, numbers: int, facts: Facts) -> bool:
    """Whether an output has as many numbers for each row, and not a row for each cell of maps."""
    if len(shape) != 3 or shape[2] != numbers:
        return False
    rows = shape[1]
    return (
        not isinstance(rows, int) or facts.size is None or anchors_a_cell(rows, facts.size) is None
    )
