"""Accuracy in the gate: the scores of ``trtq evaluate``, each against its limit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from trtq.artifact import check_record, read_json
from trtq.errors import ArtifactError, UsageError, suggest
from trtq.specs import GateSpec
from trtq.tasks.base import Figure, with_fields

Outcome = Literal["passed", "failed", "not valid"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison, as text for a person.

    Attributes:
        what: file, mode, batch and figure, or the score and the number of images.
        baseline, candidate: both values with their unit; ``n/a`` where one is missing.
        change: relative for times, rates, energy and memory, with its interval where there is one;
            absolute for scores.
        limit: the largest change that passes, in the form of ``change``.
        outcome: ``not valid`` where the comparison decides nothing.
        why: the reason for ``not valid``, else "".
    """

    what: str
    baseline: str
    candidate: str
    change: str
    limit: str
    outcome: Outcome
    why: str = ""


class _Evaluation(msgspec.Struct):
    """The part of an evaluation that the gate reads; other tools may write it, too."""

    top1: float | None = None
    reference_top1: float | None = None
    miou: float | None = None
    reference_miou: float | None = None
    figures: list[Figure] = []
    reference_figures: list[Figure] = []
    agreement: float | None = None
    agreement_figures: list[Figure] = []
    images: int | None = None
    data: Any = None

    @property
    def scores(self) -> dict[str, Figure]:
        """The scores by name, the one that models are compared by first; agreement is last."""
        return _known(self.figures, {"mIoU": self.miou, "top-1": self.top1}) | self._agreement

    @property
    def reference(self) -> dict[str, Figure]:
        """The reference's scores by name; its agreement with itself is perfect."""
        fields = {"mIoU": self.reference_miou, "top-1": self.reference_top1}
        alike = {n: replace(f, value=f.perfect) for n, f in self._agreement.items()}
        return alike | _known(self.reference_figures, fields)

    @property
    def _agreement(self) -> dict[str, Figure]:
        return _known(self.agreement_figures, {"agreement": self.agreement})


def _known(figures: list[Figure], fields: dict[str, float | None]) -> dict[str, Figure]:
    return {f.name: f for f in with_fields(figures, fields) if f.value is not None}


def accuracy_checks(spec: GateSpec) -> list[Check]:
    """Compare the scores of ``trtq evaluate``, as far as limits were given.

    Args:
        spec: ``accuracy`` and ``baseline_accuracy`` are files of ``trtq evaluate --json``; without
            the second the reference's scores in the first count as the baseline.
            ``max_accuracy_drop`` and ``max_drop`` are in the units of the scores, such as
            percentage points.

    Returns:
        one check for each limit; empty without limits.

    Raises:
        UsageError: a record or a limit is missing, or the record has no score of a name.
        ArtifactError: there is no score of both sides.
    """
    if spec.max_accuracy_drop is None and not spec.max_drop:
        if spec.accuracy is None and spec.baseline_accuracy is None:
            return []
        option = "--accuracy" if spec.accuracy is not None else "--baseline-accuracy"
        raise UsageError(
            f"{option} has no limit",
            "without one the gate compares no score",
            "Add --max-accuracy-drop 0.5",
        )
    if spec.accuracy is None:
        option = "--max-drop" if spec.max_drop else "--max-accuracy-drop"
        raise UsageError(
            f"{option} needs --accuracy",
            "a bench record has no accuracy in it",
            "Run trtq evaluate FILE --data ... --out DIR, and give --accuracy DIR/evaluate.json",
        )
    new = _evaluation(spec.accuracy)
    old = _evaluation(spec.baseline_accuracy) if spec.baseline_accuracy else None
    before = new.reference if old is None else old.scores
    unlike = old is not None and (old.images, old.data) != (new.images, new.data)
    why = "the two evaluations saw other images" if unlike else ""
    return [
        _check(new, before[name], new.scores[name], most, why)
        for name, most in _limits(spec, new, before)
    ]


def _limits(
    spec: GateSpec, new: _Evaluation, before: dict[str, Figure]
) -> Iterator[tuple[str, float]]:
    """Yield the scores to compare and how much worse they may be."""
    shared = [n for n in new.scores if n in before]
    if spec.max_accuracy_drop is not None:
        if not shared:
            raise ArtifactError(
                f"There is no accuracy in {spec.accuracy}",
                "there is no score of both sides, such as top-1, mIoU, mAP or an agreement",
                "Evaluate with --reference, and with labels or --task",
            )
        yield shared[0], spec.max_accuracy_drop
    for name, most in spec.max_drop.items():
        if name not in shared:
            raise UsageError(
                f"Cannot compare {name!r} with --max-drop",
                f"{spec.accuracy} has scores of both sides for {', '.join(shared) or 'nothing'}",
                suggest(name, shared),
            )
        yield name, float(most)


def _check(new: _Evaluation, before: Figure, after: Figure, most: float, why: str) -> Check:
    """Return whether a score is worse by more than a limit."""
    assert before.value is not None
    assert after.value is not None
    change = after.value - before.value
    lost = -change if after.better == "higher" else change
    sign = "-" if after.better == "higher" else "+"
    return Check(
        what=f"{after.name} on {new.images} images",
        baseline=f"{before.value:.2f}",
        candidate=f"{after.value:.2f}",
        change=f"{change:+.2f}",
        limit=f"{sign}{most:g}",
        outcome="not valid" if why else "passed" if lost <= most else "failed",
        why=why,
    )


def _evaluation(path: str) -> _Evaluation:
    return check_record(
        read_json(Path(path), kind="evaluation"), Path(path), _Evaluation, kind="evaluation"
    )
