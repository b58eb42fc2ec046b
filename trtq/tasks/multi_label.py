"""Multi-label classification: a probability for each label, [N, C], against 0 and 1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from trtq.data.metrics import Array
from trtq.errors import DataError
from trtq.tasks.base import Figure, Outputs, Places, Score
from trtq.tasks.equal_predictions import EqualShare
from trtq.tasks.maps import caption
from trtq.tasks.one_output import OneOutput, probabilities

DECIDED = 0.5
SHOWN = 4
Bools = npt.NDArray[np.bool_]


class LabelScore:
    """Probabilities and targets of labels.

    A probability that is NaN or infinite is no decision and ranks last.

    Args:
        ignore: the target value that is not counted.
    """

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.scores: list[Array] = []
        self.wanted: list[npt.NDArray[Any]] = []

    def add(self, answer: Array, targets: npt.NDArray[Any] | None) -> None:
        """Count one batch.

        Args:
            answer: probabilities [N, C].
            targets: 0, 1 or the value that is not counted, [N, C]; None counts nothing.

        Raises:
            DataError: a target is something else.
        """
        if targets is not None:
            _require_known(targets, self.ignore)
            self.scores.append(np.where(np.isfinite(answer), answer, -np.inf))
            self.wanted.append(targets)

    @property
    def by_class(self) -> list[float | None]:
        """The average precision of each label in percent; None for one that is nowhere."""
        scores, wanted = np.concatenate(self.scores), np.concatenate(self.wanted)
        counted = wanted != self.ignore
        pairs = zip(scores.T, wanted.T, counted.T, strict=True)
        return [average_precision(s[c], w[c] > 0) for s, w, c in pairs]

    @property
    def figures(self) -> list[Figure]:
        """The mean average precision of the labels that occur, and F1 over all decisions."""
        if not self.scores:
            return []
        present = [v for v in self.by_class if v is not None]
        return [
            Figure(name="mAP", value=round(float(np.mean(present)), 4) if present else None),
            Figure(name="F1", value=self._f1()),
        ]

    def _f1(self) -> float | None:
        scores, wanted = np.concatenate(self.scores), np.concatenate(self.wanted)
        counted = wanted != self.ignore
        chosen, right = (scores > DECIDED)[counted], (wanted > 0)[counted]
        both = int(chosen.sum() + right.sum())
        return round(200.0 * int((chosen & right).sum()) / both, 4) if both else None


def _require_known(targets: npt.NDArray[Any], ignore: int) -> None:
    others = targets[(targets != 0) & (targets != 1) & (targets != ignore)]
    if others.size:
        raise DataError(
            "Cannot count the labels of samples",
            f"a target is {others[0]}, expected 0 or 1",
            f"Name the value that is not counted: --ignore-index {others[0]}",
        )


def average_precision(scores: Array, wanted: Bools) -> float | None:
    """Return the mean precision at each sample that has the label, in percent.

    Samples with equal scores are found together. None where no sample has the label.

    Args:
        scores: of one label, [N]; higher is more likely.
        wanted: whether each sample has the label, [N].

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    83.3333
    """
    if not wanted.any():
        return None
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum(wanted[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0.0, True))
    true_positives = right[ends]
    precision = true_positives / (ends + 1)
    return round(
        100.0 * float(np.sum(np.diff(true_positives, prepend=0) * precision)) / int(right[-1]), 4
    )


class EqualDecisions(EqualShare):
    """Counts of decisions, above 0.5 or not, that are equal."""

    def same(self, answer: Array, reference: Array) -> Bools:  # noqa: D102
        sound = np.isfinite(answer) & np.isfinite(reference)
        return np.asarray(((answer > DECIDED) == (reference > DECIDED)) & sound)


@dataclass(frozen=True, kw_only=True)
class MultiLabel(OneOutput):
    """Any number of labels a sample; behind the colon ``logits``: scores before the sigmoid."""

    name = "multi-label"
    form = "a probability for each label, [N, C]"
    ranks = (2,)
    words = ("logits",)

    def decode(self, outputs: Outputs, places: Places) -> Array:
        """Return probabilities [N, C].

        Args:
            outputs: of the model by name.
            places: not used.

        Raises:
            UsageError: the output is missing, or has no probabilities.
        """
        scores = super().decode(outputs, places)
        return probabilities(scores, self.name, logits=self.has_word("logits"))

    def score(self, *, ignore: int) -> Score:  # noqa: D102
        return LabelScore(ignore)

    def agreement(self) -> Score:  # noqa: D102
        return EqualDecisions()

    def mismatch(self, answer: Array, targets: npt.NDArray[Any]) -> str:  # noqa: D102
        if targets.shape != answer.shape or targets.dtype == np.object_:
            return (
                f"its output is {list(answer.shape)}, the targets are {list(targets.shape)}; "
                "expected 0 or 1 for each label"
            )
        others = targets[(targets != 0) & (targets != 1) & (targets >= 0)]
        return f"a target is {others[0]}, expected 0 or 1" if others.size else ""

    def difference(self, answer: Array, other: Array) -> float:
        """Return the largest difference of a probability, and 1 more for each other decision."""
        if not (np.isfinite(answer).all() and np.isfinite(other).all()):
            return float(len(answer))
        changed = int(((answer > DECIDED) != (other > DECIDED)).sum())
        return changed + float(np.abs(answer - other).max())

    def draw(self, image: Image.Image, answer: Array) -> Image.Image:  # noqa: D102
        best = np.argsort(-answer, kind="stable")[:SHOWN]
        return caption(image, ", ".join(f"{i}: {answer[i]:.2f}" for i in best))
