"""How often two models decide the same; no labels are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from trtq.data.metrics import Array, predictions
from trtq.tasks.base import Figure

AGREEMENT = "agreement"


class EqualShare(ABC):
    """Counts of decisions that are equal."""

    def __init__(self) -> None:
        self.equal = 0
        self.all = 0

    @abstractmethod
    def same(self, answer: Array, reference: Array) -> npt.NDArray[np.bool_]:
        """Return which decisions are equal; where a score is NaN or infinite none is.

        Args:
            answer: of the model.
            reference: of the other model, of the same shape.
        """

    def add(self, answer: Array, reference: Array) -> None:
        """Count one batch: the scores of the model and of the reference.

        Args:
            answer: samples first.
            reference: of the same shape.
        """
        same = self.same(answer, reference)
        self.equal += int(same.sum())
        self.all += same.size

    @property
    def figures(self) -> list[Figure]:
        """The share of equal decisions, percent; empty before something is counted."""
        if not self.all:
            return []
        return [Figure(name=AGREEMENT, value=round(100.0 * self.equal / self.all, 6))]


class EqualPredictions(EqualShare):
    """Counts of samples, or of pixels, for which two models choose the same class.

    Scores are [N, C] or [N, C, H, W].
    """

    def same(self, answer: Array, reference: Array) -> npt.NDArray[np.bool_]:  # noqa: D102
        sound = np.isfinite(answer).all(axis=1) & np.isfinite(reference).all(axis=1)
        return np.asarray((predictions(answer) == predictions(reference)) & sound)
