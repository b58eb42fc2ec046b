"""Tasks by name."""

from __future__ import annotations

from collections.abc import Mapping

from trtq.data.answers import Kind
from trtq.errors import UsageError, suggest
from trtq.tasks.base import Task
from trtq.tasks.classification import Classification
from trtq.tasks.segmentation import Segmentation
from trtq.tasks.tensors import Tensors

TASKS: Mapping[str, Task] = {t.name: t for t in (Classification(), Segmentation(), Tensors())}


def find_task(name: str | Task) -> Task:
    """Return a task by name.

    Raises:
        UsageError: unknown; the nearest are suggested.
    """
    if isinstance(name, Task):
        return name
    task = TASKS.get(name)
    if task is None:
        raise UsageError(
            f"Unknown task {name!r}", f"known are {', '.join(TASKS)}", suggest(name, TASKS)
        )
    return task


def task_for(kind: Kind | None) -> Task:
    """Return the task of an answer: it is never guessed, only scores of classes have one."""
    known = (t for t in TASKS.values() if kind is not None and t.kind == kind)
    return next(known, TASKS["tensors"])
