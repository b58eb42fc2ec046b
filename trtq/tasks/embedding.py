"""Embeddings: one vector a sample [N, D], compared by their angles and neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trtq.data.metrics import Array
from trtq.tasks.base import Figure, Score
from trtq.tasks.equal_predictions import AGREEMENT
from trtq.tasks.one_output import OneOutput

ROWS = 1024  # vectors that are compared with all others at once


class Recall:
    """Vectors and labels: how often the nearest other sample has the same label.

    Samples without another one of their label are no queries. A vector that is NaN, infinite or
    zero has no neighbour.

    Args:
        ignore: the label of samples that are left out.
    """

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.vectors: list[Array] = []
        self.labels: list[npt.NDArray[np.int64]] = []

    def add(self, answer: Array, targets: npt.NDArray[np.int64] | None) -> None:
        """Count one batch.

        Args:
            answer: vectors, [N, D].
            targets: labels, [N]; None counts nothing.
        """
        if targets is None:
            return
        counted = targets != self.ignore
        self.vectors.append(answer[counted])
        self.labels.append(targets[counted])

    @property
    def figures(self) -> list[Figure]:
        """Recall at 1, percent; None where all labels are equal, or all differ."""
        if not self.labels:
            return []
        labels = np.concatenate(self.labels)
        values, counts = np.unique(labels, return_counts=True)
        queries = np.isin(labels, values[counts > 1])
        if len(values) < 2 or not queries.any():
            return [Figure(name="recall@1", value=None)]
        nearest = neighbours(np.concatenate(self.vectors))
        right = (nearest >= 0) & (labels[nearest] == labels)
        return [Figure(name="recall@1", value=round(100.0 * float(right[queries].mean()), 4))]


class EqualNeighbours:
    """Vectors of two models: their angles, and whether each sample has the same neighbour."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Array, Array]] = []

    def add(self, answer: Array, reference: Array) -> None:
        """Count one batch.

        Args:
            answer: vectors of the model, [N, D].
            reference: of the other model, [N, D].
        """
        self.pairs.append((np.array(answer), np.array(reference)))

    @property
    def figures(self) -> list[Figure]:
        """The share of equal nearest neighbours in percent, and the mean and least cosine.

        There are no neighbours among fewer than three samples.
        """
        if not self.pairs:
            return []
        own, theirs = (np.concatenate(side) for side in zip(*self.pairs, strict=True))
        equal: float | None = None
        if len(own) > 2:
            ours, wanted = neighbours(own), neighbours(theirs)
            equal = round(100.0 * float(((ours == wanted) & (ours >= 0)).mean()), 4)
        angles = cosines(own, theirs)
        return [
            Figure(name=f"top-1 retrieval {AGREEMENT}", value=equal),
            Figure(name="mean cosine", value=round(float(angles.mean()), 6), unit=""),
            Figure(name="least cosine", value=round(float(angles.min()), 6), unit=""),
        ]


@dataclass(frozen=True, kw_only=True)
class Embedding(OneOutput):
    """One vector a sample; behind the colon the name of the output that has it."""

    name = "embedding"
    form = "one vector a sample, [N, D]"
    ranks = (2,)

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        return Recall(ignore)

    def agreement(self) -> Score:  # noqa: D102
        return EqualNeighbours()

    def mismatch(self, answer: Array, targets: npt.NDArray[Any]) -> str:  # noqa: D102
        del answer
        if targets.ndim == 1 and targets.dtype.kind in "iu":
            return ""
        what = "no numbers" if targets.dtype == np.object_ else str(targets.dtype)
        return f"its targets are {what} {list(targets.shape)}, expected one label a sample"

    def difference(self, answer: Array, other: Array) -> float:
        """Return 1 minus the cosine, 0 to 2; NaN differs by 2."""
        return float(1.0 - cosines(answer[None], other[None])[0])


def directions(vectors: Array) -> Array:
    """Return vectors of length 1 [N, D]; those that are NaN, infinite or zero become NaN.

    Args:
        vectors: of any float type, [N, D].

    Returns:
        float32.
    """
    values = vectors.astype(np.float32)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    sound = np.isfinite(lengths) & (lengths > 0.0)
    return np.where(sound, values / np.where(sound, lengths, 1.0), np.float32(np.nan))


def cosines(one: Array, other: Array) -> npt.NDArray[np.float64]:
    """Return the cosine of each two vectors [N]; -1 where one has no direction.

    Args:
        one: [N, D].
        other: [N, D].
    """
    similarities = np.einsum("nd,nd->n", directions(one), directions(other)).astype(np.float64)
    return np.clip(np.where(np.isfinite(similarities), similarities, -1.0), -1.0, 1.0)


def neighbours(vectors: Array) -> npt.NDArray[np.int64]:
    """Return the other vector with the largest cosine for each [N], the first of equal ones.

    It is -1 for vectors without a direction.

    Args:
        vectors: [N, D].
    """
    own = directions(vectors)
    nearest = [_nearest(own, start) for start in _starts(len(own))]
    return np.concatenate(nearest) if nearest else np.zeros(0, dtype=np.int64)


def _starts(count: int) -> Iterator[int]:
    yield from range(0, count, ROWS)


def _nearest(own: Array, start: int) -> npt.NDArray[np.int64]:
    rows = own[start : start + ROWS]
    with np.errstate(invalid="ignore"):
        angles = rows @ own.T
    angles = np.where(np.isfinite(angles), angles, -np.inf)
    angles[np.arange(len(rows)), np.arange(start, start + len(rows))] = -np.inf
    best = angles.argmax(axis=1)
    return np.where(np.isfinite(angles.max(axis=1)), best, -1)
