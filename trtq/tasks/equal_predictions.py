"""How often two models choose the same class; no labels are needed."""

from __future__ import annotations

import numpy as np

from trtq.data.metrics import Array, confusion, mean_overlap, predictions
from trtq.tasks.base import Figure

AGREEMENT = "agreement"


class EqualPredictions:
    """Counts of samples, or of pixels, for which two models choose the same class.

    Scores are [N, C] or [N, C, H, W]. Where a score is NaN or infinite nothing is equal.
    """

    def __init__(self) -> None:
        self.equal = 0
        self.all = 0

    def add(self, answer: Array, reference: Array) -> None:
        """Count one batch: the scores of the model and of the reference."""
        same = predictions(answer) == predictions(reference)
        same &= np.isfinite(answer).all(axis=1) & np.isfinite(reference).all(axis=1)
        self.equal += int(same.sum())
        self.all += same.size

    @property
    def figures(self) -> list[Figure]:
        """The share of equal predictions, percent; empty before something is counted."""
        if not self.all:
            return []
        return [Figure(name=AGREEMENT, value=round(100.0 * self.equal / self.all, 6))]


class EqualPixels(EqualPredictions):
    """The same, with the reference's classes as masks for the model's intersection over union."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = np.zeros((0, 0), dtype=np.int64)

    def add(self, answer: Array, reference: Array) -> None:  # noqa: D102
        super().add(answer, reference)
        classes = answer.shape[1]
        found, wanted = predictions(answer), predictions(reference)
        ruined = ~np.isfinite(answer).all(axis=1)
        found[ruined] = (wanted[ruined] + 1) % classes
        new = confusion(found, wanted, classes, ignore=-1)
        self.counts = new if not self.counts.size else self.counts + new

    @property
    def figures(self) -> list[Figure]:
        """Equal predictions and agreement mIoU, percent."""
        if not self.all:
            return []
        overlap = Figure(name="agreement mIoU", value=round(mean_overlap(self.counts), 4))
        return [*super().figures, overlap]
