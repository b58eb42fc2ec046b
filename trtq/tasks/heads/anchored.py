"""Heads that say how far each object is from an anchor box; the anchors are given as a file."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from trtq.data.metrics import Array
from trtq.errors import UsageError
from trtq.tasks.detections import Detections
from trtq.tasks.facts import Facts
from trtq.tasks.heads.base import Head, best_of, corners, sigmoid, softmax, suppressed

LARGEST = math.log(1000 / 16)  # logarithm of how much larger than its anchor a box can be
PARTS = {  # the outputs by words in their names
    "scores": re.compile(r"cls|class|conf|score|logit"),
    "boxes": re.compile(r"box|reg|loc"),
    "centerness": re.compile(r"cent|ctr"),
}


@dataclass(frozen=True, kw_only=True)
class Anchored(Head):
    """Scores [N, A, C] and distances [N, A, 4] from anchors.

    Attributes:
        anchors: left, top, right and bottom in pixels of the input, [A, 4].
    """

    only_asked: ClassVar[bool] = True
    parts: ClassVar[tuple[str, ...]] = ("scores", "boxes")
    background: ClassVar[int] = 0  # columns of scores before the classes
    anchors: Array

    @classmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:  # noqa: D102
        del by_name
        names = _parts(facts)
        if any(part not in names for part in cls.parts):
            return []
        columns = facts.outputs[names["scores"]][2]
        if not isinstance(columns, int) or columns <= cls.background:
            return []
        return [
            cls(
                outputs=tuple(names[part] for part in cls.parts),
                classes=columns - cls.background,
                anchors=cls._anchors(facts, facts.outputs[names["boxes"]][1]),
            )
        ]

    @classmethod
    def _anchors(cls, facts: Facts, wanted: int | str | None) -> Array:
        if facts.anchors is None:
            raise UsageError(
                f"The head {cls.name} needs the anchors of the model",
                "its outputs are distances from them",
                "Write them to a file [A, 4], left, top, right and bottom in pixels of the input, "
                f"and give --task detection:{cls.name}:FILE.npy",
            )
        if isinstance(wanted, int) and len(facts.anchors) != wanted:
            raise UsageError(
                "The anchors do not fit the outputs",
                f"{len(facts.anchors)} anchors are given, the outputs have {wanted}",
                "Give the anchors for this input size",
            )
        return facts.anchors

    def decode_arrays(  # noqa: D102
        self, outputs: Sequence[Array], size: tuple[int, int]
    ) -> list[Detections]:
        del size
        if outputs[1].shape[1] != len(self.anchors):
            raise UsageError(
                "The anchors do not fit the outputs",
                f"{len(self.anchors)} anchors are given, the outputs have {outputs[1].shape[1]}",
                "Give the anchors for this input size",
            )
        return [self._read(*parts) for parts in zip(*outputs, strict=True)]

    def _read(self, logits: Array, distances: Array, *more: Array) -> Detections:
        best = best_of(self._scores(logits, *more).T, self.least_score)
        boxes = self._boxes(self.anchors[best.rows], distances[best.rows])
        kept = suppressed(boxes, best, overlap=self.overlap, most=self.most)
        return Detections.of(boxes[kept], best.scores[kept], best.classes[kept])

    def _scores(self, logits: Array, *more: Array) -> Array:
        """Return scores [A, classes]."""
        raise NotImplementedError

    def _boxes(self, anchors: Array, distances: Array) -> Array:
        """Return boxes xyxy [M, 4]."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RetinaNet(Anchored):
    """RetinaNet: a sigmoid for each class."""

    name: ClassVar[str] = "retinanet"
    summary: ClassVar[str] = (
        "logits [N, A, classes] for a sigmoid, distances [N, A, 4], and a file of anchors "
        "(RetinaNet)"
    )
    weights: ClassVar[tuple[float, float]] = (1.0, 1.0)  # of centres and of sizes
    overlap: float = 0.5

    def _scores(self, logits: Array, *more: Array) -> Array:
        del more
        return sigmoid(logits)

    def _boxes(self, anchors: Array, distances: Array) -> Array:
        sizes = anchors[:, 2:] - anchors[:, :2]
        centres = anchors[:, :2] + sizes / 2 + distances[:, :2] / self.weights[0] * sizes
        growth = np.exp(np.minimum(distances[:, 2:] / self.weights[1], LARGEST))
        return corners(np.concatenate([centres, growth * sizes], axis=1, dtype=np.float32))


@dataclass(frozen=True, kw_only=True)
class Ssd(RetinaNet):
    """SSD: a softmax over the background and the classes."""

    name: ClassVar[str] = "ssd"
    summary: ClassVar[str] = (
        "logits [N, A, 1 + classes] for a softmax with the background first, distances [N, A, 4], "
        "and a file of anchors (SSD)"
    )
    background: ClassVar[int] = 1
    weights: ClassVar[tuple[float, float]] = (10.0, 5.0)
    overlap: float = 0.45

    def _scores(self, logits: Array, *more: Array) -> Array:
        del more
        return softmax(logits)[:, 1:]


@dataclass(frozen=True, kw_only=True)
class Fcos(Anchored):
    """FCOS: distances to four sides in sizes of the anchor, and how central it is."""

    name: ClassVar[str] = "fcos"
    summary: ClassVar[str] = (
        "logits [N, A, classes] for a sigmoid, distances [N, A, 4], centerness [N, A, 1], and "
        "a file of anchors (FCOS)"
    )
    parts: ClassVar[tuple[str, ...]] = ("scores", "boxes", "centerness")
    overlap: float = 0.6

    def _scores(self, logits: Array, *more: Array) -> Array:
        return np.asarray(np.sqrt(sigmoid(logits) * sigmoid(more[0])))

    def _boxes(self, anchors: Array, distances: Array) -> Array:
        sizes = np.tile(anchors[:, 2:] - anchors[:, :2], 2)
        centres = np.tile((anchors[:, :2] + anchors[:, 2:]) / 2, 2)
        signs = np.asarray([-1, -1, 1, 1], dtype=np.float32)
        return np.asarray(centres + signs * distances * sizes)


def _parts(facts: Facts) -> dict[str, str]:
    """Return the names of the outputs [N, A, ...] by what they are; two of a kind are none."""
    names = [n for n, shape in facts.outputs.items() if len(shape) == 3]
    names_by_part: dict[str, list[str]] = {}
    for part in ("centerness", "boxes", "scores"):
        taken = {n for others in names_by_part.values() for n in others}
        names_by_part[part] = [n for n in names if n not in taken and PARTS[part].search(n.lower())]
    single = {part: own[0] for part, own in names_by_part.items() if len(own) == 1}
    if "boxes" in single and facts.outputs[single["boxes"]][2] != 4:
        del single["boxes"]
    return single
