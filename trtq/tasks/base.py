"""What a task is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from trtq.data.answers import Kind
from trtq.data.metrics import Array


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One score.

    Attributes:
        name: such as ``top-1``.
        value: in ``unit``; None where nothing could be counted.
        unit: such as ``%``.
    """

    name: str
    value: float | None
    unit: str = "%"

    @property
    def words(self) -> str:
        """The score as a person reads it."""
        if self.value is None:
            return f"{self.name} n/a"
        return f"{self.name} {self.value:.2f} {self.unit}"


class Score(Protocol):
    """Counts over batches."""

    def add(self, answer: Array, targets: npt.NDArray[np.int64] | None) -> None:
        """Count one batch: answers and targets, samples first."""

    @property
    def figures(self) -> list[Figure]:
        """What the batches say together, the figure that models are compared by first.

        Empty without targets.
        """


class Task(ABC):
    """What the first output of a model means.

    Attributes:
        name: as it is asked for.
        kind: of the answer; None where it is only numbers.
        takes_targets: whether answers can be right or wrong.
    """

    name: str
    kind: Kind | None = None
    takes_targets: bool = True

    @abstractmethod
    def score(self, *, ignore: int) -> Score:
        """Return new counts.

        Args:
            ignore: the target value that is not counted.
        """

    def mismatch(self, answer: Array, targets: npt.NDArray[np.int64]) -> str:
        """Return why targets cannot be compared with answers of these shapes, "" when they can."""
        del answer, targets
        return ""
