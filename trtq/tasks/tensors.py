"""Outputs without a known meaning: signal to quantization noise and cosine, never an agreement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trtq.data.metrics import Array
from trtq.tasks.base import Figure, Score, Task


class NoScore:
    """Nothing is right or wrong."""

    def add(self, answer: Array, targets: npt.NDArray[np.int64] | None) -> None:
        """Ignore."""

    @property
    def figures(self) -> list[Figure]:
        """None."""
        return []


class Tensors(Task):
    """Numbers, compared as numbers."""

    name = "tensors"
    takes_targets = False

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        del ignore
        return NoScore()
