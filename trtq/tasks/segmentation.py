"""Semantic segmentation: scores [N, C, H, W] against class indices of pixels [N, H, W]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtq.data.metrics import Array, confusion, hit_rate, mean_overlap, overlap, predictions
from trtq.tasks.base import Figure, Score, Task, Tensors

if TYPE_CHECKING:
    import torch


class PixelScore:
    """Counts of pixels: how often each class was taken for each.

    Args:
        ignore: the class index that is not counted.
    """

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.counts: npt.NDArray[np.int64] | None = None

    def add(self, answer: Array, targets: npt.NDArray[np.int64] | None) -> None:
        """Count one batch."""
        if targets is None:
            return
        classes = answer.shape[1]
        found = predictions(answer)
        ruined = ~np.isfinite(answer).all(axis=1)
        found[ruined] = (targets[ruined] + 1) % classes  # NaN and infinity are wrong
        new = confusion(found, targets, classes, self.ignore)
        self.counts = new if self.counts is None else self.counts + new

    @property
    def figures(self) -> list[Figure]:
        """Mean intersection over union, and the share of right pixels, percent."""
        if self.counts is None or not self.counts.any():
            return []
        return [
            Figure(name="mIoU", value=round(mean_overlap(self.counts), 4)),
            Figure(name="pixel accuracy", value=round(hit_rate(self.counts), 4)),
        ]

    @property
    def by_class(self) -> list[float | None] | None:
        """Intersection over union by class index, percent; None for an absent class."""
        if self.counts is None:
            return None
        values = overlap(self.counts).tolist()
        return [round(v, 4) if math.isfinite(v) else None for v in values]


class Segmentation(Task):
    """One class a pixel."""

    name = "segmentation"
    kind = "pixels"

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        return PixelScore(ignore)

    def divergence(self, outputs: Tensors, reference: Tensors) -> torch.Tensor:
        """Return the Jensen-Shannon divergence of the classes, summed over pixels, nats [N]."""
        from trtq.tasks.distances import class_divergence

        return class_divergence(next(iter(outputs.values())), next(iter(reference.values())))

    def mismatch(self, answer: Array, targets: npt.NDArray[np.int64]) -> str:  # noqa: D102
        if targets.dtype.kind not in "iu":
            return f"its targets are {targets.dtype}, expected class indices"
        if answer.ndim != 4 or answer.dtype.kind != "f":
            return f"its output is {list(answer.shape)}, not [N, classes, H, W]"
        if targets.shape[1:] != answer.shape[2:]:
            return (
                f"its output is {list(answer.shape[2:])}, the masks are {list(targets.shape[1:])}"
            )
        return ""
