"""Heads of transformers: boxes as shares of the picture, and scores of classes, for each query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from trtq.data.metrics import Array
from trtq.tasks.detections import Detections
from trtq.tasks.facts import Facts
from trtq.tasks.heads.base import Head, best_of, corners, output_called, ranked, sigmoid, softmax
from trtq.tasks.heads.yolo_parts import whole_masks

if TYPE_CHECKING:
    from trtq.tasks.base import Tensors
    from trtq.tasks.distances import Raw

BOX = 4  # centre, width and height
ROW = 6  # box, score, class


@dataclass(frozen=True, kw_only=True)
class Queries(Head):
    """Logits [N, Q, classes] and boxes [N, Q, 4] in two outputs."""

    by_names: ClassVar[bool] = True
    nothing: ClassVar[int]  # columns for "no object" behind the classes

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        if not by_name and not cls._is_meant(facts):
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

    def raw(self, outputs: Tensors, size: tuple[int, int]) -> Raw:  # noqa: D102
        from trtq.tasks.distances import Raw

        logits, boxes = (outputs[n] for n in self.outputs)
        height, width = size
        scores = logits.softmax(2)[..., : -self.nothing] if self.nothing else logits.sigmoid()
        return Raw(boxes * boxes.new_tensor([width, height, width, height]), scores)

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
class RfDetr(RtDetr):
    """RF-DETR as its own export names the outputs; fine-tuned ones have a column for no class.

    Attributes:
        columns: of the logits; those behind the classes are no class.
    """

    name: ClassVar[str] = "rf-detr"
    summary: ClassVar[str] = (
        "dets [N, Q, 4] and labels [N, Q, classes or classes + 1] for a sigmoid, and perhaps masks "
        "[N, Q, h, w] (RF-DETR)"
    )
    columns: int

    @property
    def gives(self) -> tuple[str, ...]:  # noqa: D102
        return ("masks",) if len(self.outputs) > 2 else ()

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        del by_name  # its names are its own
        labels = output_called(facts, ("labels",), rank=3)
        dets = output_called(facts, ("dets",), rank=3)
        if labels is None or dets is None or facts.outputs[dets][2] != BOX:
            return []
        columns = facts.outputs[labels][2]
        if not isinstance(columns, int) or facts.outputs[labels][1] != facts.outputs[dets][1]:
            return []
        masks = output_called(facts, ("masks",), rank=4)
        outputs = (labels, dets) if masks is None else (labels, dets, masks)
        without = facts.count is not None and columns == facts.count + 1
        return [cls(outputs=outputs, columns=columns, classes=columns - without)]

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        maps = list(outputs[2]) if len(outputs) > 2 else [None] * len(outputs[0])
        return [
            self._with_masks(logits[:, : self.classes], pixels(boxes, size), own, size)
            for logits, boxes, own in zip(outputs[0], outputs[1], maps, strict=True)
        ]

    def _with_masks(
        self, logits: Array, boxes: Array, maps: Array | None, size: tuple[int, int]
    ) -> Detections:
        if maps is None:
            return self._read(logits, boxes)
        best = best_of(sigmoid(logits).T, self.least_score)
        sound = np.flatnonzero(np.isfinite(boxes[best.rows]).all(axis=1))[: self.most]
        chosen = best.at(sound)
        masks = whole_masks(maps[chosen.rows], size)
        return Detections.of(boxes[chosen.rows], chosen.scores, chosen.classes, masks=masks)

    def raw(self, outputs: Tensors, size: tuple[int, int]) -> Raw:  # noqa: D102
        named = {n: outputs[n] for n in self.outputs[:2]}
        labels = self.outputs[0]
        named[labels] = named[labels][..., : self.classes]
        return replace(self, outputs=self.outputs[:2])._raw(named, size)

    def _raw(self, outputs: Tensors, size: tuple[int, int]) -> Raw:
        return super().raw(outputs, size)


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
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        if not by_name and (not facts.is_rt_detr or any(_pairs(facts))):
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
    detections = Detections.of(boxes[best.rows], best.scores, best.classes).finite()
    return detections.at(np.arange(min(len(detections), most)))


def pixels(boxes: Array, size: tuple[int, int]) -> Array:
    """Return xyxy in pixels of centre, width and height as shares of a picture, [Q, 4].

    Args:
        boxes: [Q, 4].
        size: height and width of the picture.
    """
    height, width = size
    return corners(boxes * np.asarray([width, height, width, height], dtype=np.float32))
