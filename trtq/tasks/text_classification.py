"""Classification of texts and other samples: logits [N, C] against class indices [N]."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from trtq.data.answers import Kind
from trtq.data.metrics import Array
from trtq.errors import UsageError
from trtq.tasks.base import Figure, Score
from trtq.tasks.classification import TopScore, class_difference, class_mismatch
from trtq.tasks.equal_predictions import EqualPredictions
from trtq.tasks.facts import Facts
from trtq.tasks.one_output import OneOutput


class Accuracy(TopScore):
    """Counts of labels that came first; answers that are NaN or infinite are wrong."""

    @property
    def figures(self) -> list[Figure]:
        """The accuracy, percent."""
        if not self.labelled:
            return []
        return [Figure(name="accuracy", value=round(100.0 * self.top1 / self.labelled, 4))]


@dataclass(frozen=True, kw_only=True)
class TextClassification(OneOutput):
    """One class a text.

    Attributes:
        kind: of the model's first output: scores of classes where it is the one that is read.
    """

    name = "text-classification"
    form = "scores of two classes or more, [N, C]"
    ranks = (2,)
    kind: Kind | None = field(default="classes")

    def bound(self, facts: Facts) -> TextClassification:
        """Return the task with the output that it reads.

        Args:
            facts: shapes of the outputs, in order.

        Raises:
            UsageError: no output fits, or several, or it has one column.
        """
        task = super().bound(facts)
        if facts.outputs[task.output][1] == 1:
            raise UsageError(
                f"Cannot use the task {self.name}",
                f"{task.output} has one column: there are no two classes to choose from",
                "For the logit of yes or no: --task multi-label:logits",
            )
        first = task.output == next(iter(facts.outputs))
        return replace(task, kind="classes" if first else None)

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        return Accuracy(ignore)

    def agreement(self) -> Score:  # noqa: D102
        return EqualPredictions()

    def mismatch(self, answer: Array, targets: npt.NDArray[np.int64]) -> str:  # noqa: D102
        return class_mismatch(answer, targets)

    def difference(self, answer: Array, other: Array) -> float:
        """Return how much probability is on other classes; more where the classes differ."""
        return class_difference(answer, other)
