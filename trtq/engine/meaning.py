"""Meaning of the answers of a built model: boxes may be gone although the numbers are close."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from trtq.data.answers import TASK
from trtq.data.metrics import Array
from trtq.errors import UsageError
from trtq.export.feeds import Given
from trtq.export.onnx_file import get_metadata, made_with
from trtq.layouts import IMAGE_AXES
from trtq.tasks import Facts, Figure, Task, find_task, stored_task

# Points below what the file's own codes keep of its float model's answers. An engine may
# round results to FP16: in ONNX Runtime that cost 0 points of agreement mAP on 32 images and 3.4
# on 12 pages (docs/decisions.md). The rest is for few samples: one box of ten is ten points of its
# class.
SLACK = 10.0
LEAST = 90.0  # percent, of a file without codes


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """A task that compares answers with those of the file.

    Attributes:
        task: bound to the file.
        wanted: outputs of the file by name, over all samples.
        least: percent that a first score must have.
        kept: what the file's own codes keep of its float model's answers, percent; None without
            codes, and where nothing was counted.
    """

    task: Task
    wanted: Mapping[str, Array]
    least: float = LEAST
    kept: float | None = None

    def alike(self, got: Mapping[str, Array]) -> list[Figure]:
        """Return what the task says of other answers to the same samples.

        Args:
            got: outputs by name, over all samples.

        Returns:
            Figures, the score that is limited first; none where the task cannot compare two answers
            or an output is missing.
        """
        counts = self.task.agreement()
        if counts is None or set(got) < set(self.wanted):
            return []
        ours = {n: got[n] for n in self.wanted}
        counts.add(self.task.decode(ours, None), self.task.decode(self.wanted, None))
        return counts.figures

    def limit(self, alike: list[Figure]) -> str:
        """Return the limit of the first figure and how it was set; "" where it has none."""
        if not alike or not _has_limit(alike[0]):
            return ""
        reason = "the file has no codes, or nothing of its float model could be counted"
        if self.kept is not None:
            reason = (
                f"{SLACK:g} points below the {self.kept:.2f} % that the file's codes keep of its "
                f"float model, at most {LEAST:g} %"
            )
        return f"{alike[0].name} at least {self.least:.2f} %: {reason}"

    def holds(self, alike: list[Figure]) -> bool:
        """Whether answers are alike enough; a score that nothing counted for says nothing."""
        first = alike[0] if alike else None
        if first is None or first.value is None or not _has_limit(first):
            return True
        return first.value >= self.least


def _has_limit(figure: Figure) -> bool:
    """Whether a figure is a share, of which more is better."""
    return (figure.unit, figure.better) == ("%", "higher")


def meaning_of(
    model: onnx.ModelProto,
    batch: Given,
    wanted: Mapping[str, Array],
    plain: Mapping[str, Array] | None,
    task_name: str | None = None,
) -> Meaning | None:
    """Return the meaning of a file's answers; None where the file names no task of trtq's.

    Args:
        model: the file; only names of trtq's own tasks are followed, never those of code.
        batch: inputs, for the size of images.
        wanted: outputs of the file by name.
        plain: the same without its Q/DQ pairs; None for a file without pairs.
        task_name: a task that a user named; default: that of the file.

    Raises:
        UsageError: the model has not the outputs that the task which was asked for reads.
    """
    if task_name is not None:
        task = bound_to(task_name, model, batch, wanted)
    else:
        named = stored_task(get_metadata(model).get(TASK))
        if named is None:
            return None
        try:
            task = bound_to(named, model, batch, wanted)
        except UsageError:
            return None  # an engine may end before the outputs that the task reads
    whole = Meaning(task=task, wanted=wanted)
    if plain is None:
        return whole
    own = whole.alike(plain)
    value = own[0].value if own else None
    least = LEAST if value is None else min(LEAST, value - SLACK)
    return Meaning(task=task, wanted=wanted, least=least, kept=value)


def bound_to(name: str, model: onnx.ModelProto, batch: Given, wanted: Mapping[str, Array]) -> Task:
    """Return a task for the answers of a file.

    Args:
        name: of the task.
        model: the file.
        batch: inputs, for the size of images.
        wanted: its outputs by name.

    Raises:
        UsageError: it has not the outputs that the task reads.
    """
    given = np.asarray(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)
    image = given if given.ndim == IMAGE_AXES else None
    return find_task(name).bound(Facts.of(wanted, image, made_with(model)))
