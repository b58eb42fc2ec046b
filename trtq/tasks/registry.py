"""Tasks by name."""

from __future__ import annotations

from collections.abc import Mapping

from trtq import extensions
from trtq.data.answers import Kind
from trtq.errors import UsageError
from trtq.tasks.base import Task
from trtq.tasks.classification import Classification
from trtq.tasks.depth import Depth
from trtq.tasks.detection import Detection
from trtq.tasks.embedding import Embedding
from trtq.tasks.instances import Instances
from trtq.tasks.keypoints import Keypoints
from trtq.tasks.multi_label import MultiLabel
from trtq.tasks.segmentation import Segmentation
from trtq.tasks.tensors import Tensors
from trtq.tasks.text_classification import TextClassification
from trtq.tasks.text_lines import TextLines

ROWS: tuple[Task, ...] = (
    Classification(),
    Segmentation(),
    Detection(),
    Instances(),
    Keypoints(),
    Depth(),
    Embedding(),
    TextClassification(),
    MultiLabel(),
    TextLines(),
    Tensors(),
)
TASKS: Mapping[str, Task] = {row.name: row for row in ROWS}
# By the word for it in ultralytics' metadata.
BY_MAKER = {"detect": "detection", "segment": "instances", "pose": "keypoints"}


def find_task(name: str | Task | type[Task]) -> Task:
    """Return a task by name, one of trtq's or an extension.

    A name may have an argument behind a colon, such as ``detection:yolo``.

    Args:
        name: ``NAME``, ``NAME:ARGUMENT``, ``file.py:NAME``, ``module:NAME`` or an entry point; a
            task or its class is taken as it is.

    Raises:
        UsageError: unknown (the nearest are suggested), or it cannot be loaded.
    """
    if isinstance(name, Task):
        return name
    if isinstance(name, type) and issubclass(name, Task):
        return name()
    if name in TASKS:
        return TASKS[name]
    base, _, argument = name.partition(":")
    if base in TASKS and argument:
        return TASKS[base].with_argument(argument)
    task = extensions.load("tasks", name, built_in=tuple(TASKS))
    if isinstance(task, type) and issubclass(task, Task):
        return task()
    if not isinstance(task, Task):
        raise UsageError(
            f"Cannot use the task {name!r}",
            f"it is of type {type(task).__name__}, expected trtq.tasks.Task",
        )
    return task


def stored_task(name: object) -> str | None:
    """Return the name of a task that a file asks for, if it is one of trtq's own.

    A file of somebody else must not choose which code is loaded.

    Args:
        name: as the metadata of a file has it.
    """
    known = isinstance(name, str) and name.partition(":")[0] in TASKS
    return str(name) if known else None


def task_for(kind: Kind | None) -> Task:
    """Return the task of an answer: it is never guessed, only scores of classes have one.

    Args:
        kind: of the first output; None where nothing says it.

    Returns:
        The task ``tensors`` where no task has that kind.
    """
    known = (t for t in TASKS.values() if kind is not None and t.kind == kind)
    return next(known, TASKS["tensors"])
