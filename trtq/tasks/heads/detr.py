"""Heads of transformers: boxes as shares of the picture, and scores of classes, for each query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trtq.data.metrics import Array
from trtq.tasks.detections import Detections
from trtq.tasks.facts import Facts
from trtq.tasks.heads.base import Head, best_of, corners, output_called, ranked, sigmoid, softmax

BOX = 4  # centre, width and height
ROW = 6  # box, score, class


@dataclass(frozen=True, kw_only=True)
class Queries(Head):
    """Logits [N, Q, classes] and boxes [N, Q, 4] in two outputs."""

    by_names: ClassVar[bool] = True
    nothing: ClassVar[int]  # columns for "no object" behind the classes

    @classmethod
    def fitting(cls, facts: Facts, *, asked: bool) -> Sequence[Head]:  # noqa: D102
        if not asked and not cls._is_meant(facts):
            return []
        return [
            cls(outputs=(logits, boxes), classes=columns - cls.nothing)
            for logits, boxes, columns in _pairs(facts)
            if columns > cls.nothing
        ]

    @classmethod
    def _is_meant(cls, facts: Facts) -> bool:
        """Whether the metadata do not speak against it."""
        del facts
        return True

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        return [
            self._read(logits, pixels(boxes, size)) for logits, boxes in zip(*outputs, strict=True)
        ]

    def _read(self, logits: Array, boxes: Array) -> Detections:
        """Return the detections of one sample, boxes in pixels."""
        raise NotImplementedError


def _pairs(facts: Facts) -> Iterator[tuple[str, str, int]]:
    """Yield logits and boxes of the same queries, and how many columns the logits have."""
    logits = output_called(facts, ("logits", "pred_logits"), rank=3)
    boxes = output_called(facts, ("pred_boxes", "boxes"), rank=3)
    if logits is None or boxes is None or facts.outputs[boxes][2] != BOX:
        return
    columns = facts.outputs[logits][2]
    if isinstance(columns, int) and facts.outputs[logits][1] == facts.outputs[boxes][1]:
        yield logits, boxes, columns


@dataclass(frozen=True, kw_only=True)
class Detr(Queries):
    """DETR and YOLOS: a query has one class or is no object."""

    name: ClassVar[str] = "detr"
    summary: ClassVar[str] = (
        "logits [N, Q, classes + 1] for a softmax with no object last, and pred_boxes [N, Q, 4] "
        "(DETR, YOLOS)"
    )
    nothing: ClassVar[int] = 1

    @classmethod
    def _is_meant(cls, facts: Facts) -> bool:
        return not facts.is_rt_detr

    def _read(self, logits: Array, boxes: Array) -> Detections:
        shares = softmax(logits)[:, :-1]
        classes = shares.argmax(axis=1)
        scores = shares[np.arange(len(shares)), classes]
        return ranked(boxes, scores, classes, least=self.least_score, most=self.most)[0]


@dataclass(frozen=True, kw_only=True)
class RtDetr(Queries):
    """RT-DETR, Deformable and Conditional DETR: a query has a score for each class."""

    name: ClassVar[str] = "rt-detr"
    summary: ClassVar[str] = (
        "logits [N, Q, classes] for a sigmoid, and pred_boxes [N, Q, 4] (RT-DETR, Deformable DETR)"
    )
    nothing: ClassVar[int] = 0

    def _read(self, logits: Array, boxes: Array) -> Detections:
        return best_pairs(boxes, sigmoid(logits), least=self.least_score, most=self.most)


@dataclass(frozen=True, kw_only=True)
class RtDetrRows(Head):
    """RT-DETR as ultralytics exports it: boxes and scores side by side, in shares of the picture.

    Attributes:
        selected: each row has one score and its class, not the scores of all classes.
    """

    name: ClassVar[str] = "rt-detr-rows"
    summary: ClassVar[str] = (
        "[N, Q, 4 + classes] or [N, Q, 6]: centre, width and height as shares of the input, then "
        "scores of all classes, or score and class (ultralytics' RT-DETR)"
    )
    by_names: ClassVar[bool] = True
    selected: bool = False

    @classmethod
    def fitting(cls, facts: Facts, *, asked: bool) -> Sequence[Head]:  # noqa: D102
        if not asked and (not facts.is_rt_detr or any(_pairs(facts))):
            return []
        # Exports that name their head have selected; two classes look the same in others.
        return [
            cls(outputs=(name,), selected=True)
            if shape[2] == ROW and ("head" in facts.metadata or facts.count != 2)
            else cls(outputs=(name,), classes=shape[2] - 4)
            for name, shape in facts.outputs.items()
            if len(shape) == 3 and isinstance(shape[2], int) and shape[2] > 4
        ]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        return [self._read(rows, size) for rows in outputs[0]]

    def _read(self, rows: Array, size: tuple[int, int]) -> Detections:
        boxes = pixels(rows[:, :4], size)
        if self.selected:
            scores, classes = rows[:, 4], rows[:, 5]
            return ranked(boxes, scores, classes, least=self.least_score, most=self.most)[0]
        return best_pairs(boxes, rows[:, 4:], least=self.least_score, most=self.most)


def best_pairs(boxes: Array, scores: Array, *, least: float, most: int) -> Detections:
    """Return the best pairs of a box and a class.

    Args:
        boxes: xyxy in pixels [Q, 4].
        scores: [Q, classes].
        least: score that is needed.
        most: pairs that are returned.
    """
    best = best_of(scores.T, least)
    found = Detections.of(boxes[best.rows], best.scores, best.classes).finite()
    return found.at(np.arange(min(len(found), most)))


def pixels(boxes: Array, size: tuple[int, int]) -> Array:
    """Return xyxy in pixels of centre, width and height as shares of a picture, [Q, 4].

    Args:
        boxes: [Q, 4].
        size: height and width of the picture.
    """
    height, width = size
    return corners(boxes * np.asarray([width, height, width, height], dtype=np.float32))
