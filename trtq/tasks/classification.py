"""Image classification: scores of classes [N, C] against class indices [N]."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtq.data.metrics import Array
from trtq.tasks.base import Figure, Score, Task, Tensors

if TYPE_CHECKING:
    import torch

BEST = 5


class TopScore:
    """Counts of labels that came first, or among the first five.

    Answers that are NaN or infinite are wrong.

    Args:
        ignore: the label that is not counted.
    """

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.labelled = 0
        self.top1 = 0
        self.top5 = 0

    def add(self, answer: Array, targets: npt.NDArray[np.int64] | None) -> None:
        """Count one batch."""
        if targets is None:
            return
        counted = targets != self.ignore
        answer, targets = answer[counted], targets[counted]
        wanted = np.where(np.isfinite(answer).all(axis=1), targets, -1)[:, None]
        best = np.argsort(-answer, axis=1, kind="stable")[:, : min(BEST, answer.shape[1])]
        self.labelled += len(targets)
        self.top1 += int((best[:, :1] == wanted).sum())
        self.top5 += int((best == wanted).sum())

    @property
    def figures(self) -> list[Figure]:
        """Top-1 and top-5, percent."""
        if not self.labelled:
            return []
        return [
            Figure(name="top-1", value=round(100.0 * self.top1 / self.labelled, 4)),
            Figure(name="top-5", value=round(100.0 * self.top5 / self.labelled, 4)),
        ]


class Classification(Task):
    """One class an image."""

    name = "classification"
    kind = "classes"

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        return TopScore(ignore)

    def divergence(self, outputs: Tensors, reference: Tensors) -> torch.Tensor:
        """Return the Jensen-Shannon divergence of the classes, nats [N]."""
        from trtq.tasks.distances import class_divergence

        return class_divergence(next(iter(outputs.values())), next(iter(reference.values())))

    def mismatch(self, answer: Array, targets: npt.NDArray[np.int64]) -> str:  # noqa: D102
        if targets.dtype.kind not in "iu":
            return f"its targets are {targets.dtype}, expected class indices"
        if answer.ndim != 2 or targets.ndim != 1:
            return f"its output is {list(answer.shape)}, the labels are {list(targets.shape)}"
        return ""
