"""Tasks: what an answer means, what is right, and how good a model is; one file a task."""

from __future__ import annotations

from trtq.tasks.base import Figure, Score, Task
from trtq.tasks.facts import Facts
from trtq.tasks.registry import BY_MAKER, TASKS, find_task, stored_task, task_for

__all__ = [
    "BY_MAKER",
    "TASKS",
    "Facts",
    "Figure",
    "Score",
    "Task",
    "find_task",
    "stored_task",
    "task_for",
]
