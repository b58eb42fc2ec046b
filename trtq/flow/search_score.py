"""The score that a search keeps: which one it is, and how low it may fall."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from trtq.data.answers import HAVE_PREDICTIONS
from trtq.errors import UsageError, suggest
from trtq.flow.candidate import Candidate
from trtq.records.evaluate import EvaluateRecord
from trtq.specs import SearchOptions
from trtq.tasks import Figure

NO_SCORES = "its output is not known to be scores of classes, and no task compares its answers"
SAY_WHAT = (
    "Say what the outputs mean (--task detection), or use trtq analyze --metric l2 and trtq "
    "allocate"
)


class Judged(NamedTuple):
    """The score of a model beside its float model's.

    Attributes:
        own: of the model; its value is not None.
        reference: the value of the float model.
    """

    own: Figure
    reference: float


@dataclass(frozen=True)
class Floor:
    """How low a score may fall.

    Attributes:
        name: of the score; None for the one that models are compared by.
        value: 0 or below: points against the float model; above: the score itself.
    """

    name: str | None
    value: float

    @property
    def called(self) -> str:
        """Name of a constraint."""
        return self.name or "accuracy"

    def words(self, unit: str) -> str:
        """As a person reads it.

        Args:
            unit: of the score.
        """
        if self.value <= 0:
            return f"{self.value:g} points"
        return f"{self.value:g} {unit}".rstrip()

    def holds(self, own: Figure, reference: float) -> bool:
        """Whether a score is high enough against a float model's.

        Args:
            own: the score of the model.
            reference: the float model's, in the same unit.
        """
        if self.value > 0:
            return own.reaches(self.value)
        return own.gain(reference) >= self.value - 1e-9


def floor_of(options: SearchOptions) -> Floor | None:
    """Return how low a score may fall; None where any would do.

    Args:
        options: ``min_accuracy`` or one ``min_score``.
    """
    if options.min_accuracy is not None:
        return Floor(None, options.min_accuracy)
    return next((Floor(name, float(v)) for name, v in options.min_score.items()), None)


def judged_by(candidate: Candidate, scored: EvaluateRecord, name: str | None) -> Judged:
    """Return the score of a name, or the one that models are compared by.

    Args:
        candidate: for the error.
        scored: the record of its evaluation.
        name: of the score; None for the one that models are compared by.

    Raises:
        UsageError: there is none, or the answers are meaningless.
    """
    if not scored.valid:
        raise no_accuracy(candidate, scored.doubt)
    pair = scored.judged if name is None else scored.scores.get(name)
    if pair is None:
        known = ", ".join(scored.scores) or "none"
        raise no_accuracy(
            candidate, NO_SCORES if name is None else f"there is no {name}, only {known}"
        )
    own, theirs = pair
    if own.value is None or (theirs is not None and theirs.value is None):
        raise no_accuracy(candidate, f"{own.name} is not known on these samples: nothing counts")
    reference = own.perfect if theirs is None or theirs.value is None else theirs.value
    return Judged(own, reference)


def no_accuracy(candidate: Candidate, reason: str) -> UsageError:
    """Return the refusal of a model whose accuracy cannot be measured.

    Args:
        candidate: the model.
        reason: why.
    """
    return UsageError(f"Cannot measure the accuracy of {candidate.name}", reason, SAY_WHAT)


def require_comparable(candidate: Candidate) -> None:
    """Refuse a model whose answers nothing compares.

    Args:
        candidate: captured, with its task.

    Raises:
        UsageError: it gives neither scores of classes nor what a task compares.
    """
    task, scored = candidate.task, candidate.scored
    if task is None:
        if candidate.model.answer_kind(scored.classes) not in HAVE_PREDICTIONS:
            raise no_accuracy(candidate, NO_SCORES)
        return
    labelled = task.takes_targets and scored.has_targets
    if not (labelled or task.kind in HAVE_PREDICTIONS or task.agreement() is not None):
        raise no_accuracy(candidate, f"the task {task.label} has no score without labels")


def require_score(floor: Floor | None, seen: EvaluateRecord) -> None:
    """Refuse a score that a model does not have.

    Args:
        floor: names it.
        seen: the float model against itself on one sample.

    Raises:
        UsageError: names those that it has.
    """
    if floor is None or floor.name is None or floor.name in seen.scores:
        return
    raise UsageError(
        f"Cannot keep the score {floor.name!r}",
        f"the scores of these samples are {', '.join(seen.scores) or 'none'}",
        suggest(floor.name, list(seen.scores)) or "Say what the outputs mean: --task",
    )
