"""Heads: from the outputs of a model to detections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from trtq.data.metrics import Array
from trtq.errors import UsageError
from trtq.tasks.detections import Detections
from trtq.tasks.facts import Facts

if TYPE_CHECKING:
    from trtq.tasks.base import Tensors
    from trtq.tasks.distances import Raw

CANDIDATES = 30_000  # boxes of one picture that suppression looks at, the best
AT_FIRST = 1000
Indices = npt.NDArray[np.int64]


class Candidates(NamedTuple):
    """Boxes that may be of an object, best first.

    Attributes:
        rows: position of each among the model's boxes, int64 [M].
        classes: int64 [M].
        scores: float32 [M].
    """

    rows: Indices
    classes: Indices
    scores: Array

    def at(self, kept: Indices) -> Candidates:
        """Return some of them."""
        return Candidates(self.rows[kept], self.classes[kept], self.scores[kept])


@dataclass(frozen=True, kw_only=True)
class Head(ABC):
    """How the outputs of a model are read as boxes.

    Attributes:
        name: as it is asked for.
        summary: the outputs that it reads.
        only_asked: whether it is used only where it is asked for by name.
        by_names: whether it is known by the names of the outputs or by the metadata, not by shapes.
        outputs: names of the outputs that it reads, in its own order.
        classes: how many classes the outputs have; None where they do not tell.
        least_score: detections below it are left out.
        overlap: of two boxes of a class with a larger intersection over union the better is kept.
        most: detections of one picture.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    only_asked: ClassVar[bool] = False
    by_names: ClassVar[bool] = False
    outputs: tuple[str, ...]
    classes: int | None = None
    least_score: float = 0.001
    overlap: float = 0.7
    most: int = 300

    @property
    def gives(self) -> tuple[str, ...]:
        """Results beside boxes: ``masks``, ``keypoints``."""
        return ()

    @classmethod
    @abstractmethod
    def fitting(cls, facts: Facts, *, by_name: bool) -> Sequence[Head]:
        """Return the ways in which the head reads outputs of these shapes; none if it cannot.

        Args:
            facts: what is known about the model.
            by_name: the head was asked for by name: what else the outputs could be does not count.

        Raises:
            UsageError: something that it needs is missing.
        """

    @abstractmethod
    def decode_arrays(self, outputs: Sequence[Array], size: tuple[int, int]) -> list[Detections]:
        """Return the detections of each sample.

        Args:
            outputs: those that the head reads, in its own order.
            size: height and width of the input.
        """

    def raw(self, outputs: Tensors, size: tuple[int, int]) -> Raw | None:
        """Return all boxes and scores as tensors with a gradient; None where there is no such form.

        Args:
            outputs: by name, samples first.
            size: height and width of the input.
        """
        del outputs, size
        return None

    def decode(
        self, outputs: Mapping[str, npt.NDArray[Any]], size: tuple[int, int]
    ) -> list[Detections]:
        """Return the detections of each sample in pixels of the model's input, best first.

        Boxes and scores that are NaN or infinite are left out.

        Args:
            outputs: by name, samples first, numbers of any type.
            size: height and width of the input.

        Raises:
            UsageError: an output is missing.
        """
        missing = [n for n in self.outputs if n not in outputs]
        if missing:
            raise UsageError(
                f"The head {self.name} has no output {' and '.join(missing)} to read",
                f"the outputs are {', '.join(outputs) or 'none'}",
                "Keep all outputs of the model (leave --outputs out)",
            )
        arrays = [np.asarray(outputs[n], dtype=np.float32) for n in self.outputs]
        with np.errstate(all="ignore"):  # what is not finite is left out
            return self.decode_arrays(arrays, size)


def output_called(facts: Facts, words: Sequence[str], *, rank: int) -> str | None:
    """Return the first output that has one of these names, alone or behind a point.

    Args:
        facts: what is known about the model.
        words: names, the best first.
        rank: axes of the output.
    """
    last = {n: n.rpartition(".")[2] for n, shape in facts.outputs.items() if len(shape) == rank}
    return next((n for word in words for n, own in last.items() if own == word), None)


def best_of(scores: Array, least: float, *, one_class: bool = False) -> Candidates:
    """Return the classes of boxes that have at least a score.

    Args:
        scores: [classes, boxes]; NaN and infinity are no score.
        least: score that is needed.
        one_class: a box has its best class only; else every class with the score.
    """
    if not np.isfinite(scores).all():
        scores = np.where(np.isfinite(scores), scores, np.float32(-np.inf))
    if one_class:
        rows = np.flatnonzero(scores.max(axis=0, initial=-np.inf) >= least)
        classes = scores[:, rows].argmax(axis=0) if len(rows) else rows
    else:
        classes, rows = np.nonzero(scores >= least)
    values = scores[classes, rows]
    order = np.argsort(-values, kind="stable")[:CANDIDATES]
    return Candidates(rows[order], classes[order], values[order])


def suppressed(boxes: Array, candidates: Candidates, *, overlap: float, most: int) -> Indices:
    """Return the positions of candidates that no better box of their class covers.

    Args:
        boxes: of the candidates, xyxy [M, 4]; those that are not finite are left out.
        candidates: best first.
        overlap: intersection over union that is allowed.
        most: positions that are returned.
    """
    import torch
    from torchvision.ops import batched_nms

    sound = np.flatnonzero(np.isfinite(boxes).all(axis=1))
    # Torchvision moves the boxes of each class apart, which is right for positive numbers only.
    positive = boxes - boxes[sound].min(initial=0.0)
    values = [
        torch.from_numpy(np.ascontiguousarray(v[sound]))
        for v in (positive, candidates.scores, candidates.classes)
    ]
    count = AT_FIRST
    # The best ones do not depend on those behind: they are looked at only where the
    # best are too few.
    while True:
        kept = batched_nms(*(v[:count] for v in values), overlap)[:most]
        if len(kept) == most or count >= len(sound):
            return np.asarray(sound[kept.numpy()], dtype=np.int64)
        count *= 4


def ranked(
    boxes: Array, scores: Array, classes: npt.NDArray[Any], *, least: float, most: int
) -> tuple[Detections, Indices]:
    """Return boxes that need no suppression as detections, and their positions.

    Args:
        boxes: xyxy [K, 4].
        scores: [K].
        classes: whole numbers of any type [K]; what is not finite or below 0 is no class.
        least: score that is needed.
        most: boxes that are returned.
    """
    kept = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & (scores >= least)
    kept &= np.isfinite(classes) & (classes >= 0)
    rows = np.flatnonzero(kept)
    rows = rows[np.argsort(-scores[rows], kind="stable")][:most]
    detections = Detections.of(boxes[rows], scores[rows], np.rint(classes[rows]).astype(np.int64))
    return detections, rows


def corners(boxes: Array) -> Array:
    """Return left, top, right, bottom [M, 4] of boxes given by centre, width and height."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def sigmoid(values: Array) -> Array:
    """Return the logistic function; NaN remains NaN."""
    from scipy.special import expit

    return np.asarray(expit(values), dtype=np.float32)


def softmax(values: Array) -> Array:
    """Return the softmax over the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), dtype=np.float32)
