"""Tasks: what an answer means, what is right, and how good a model is; one file a task."""

from __future__ import annotations

from trtq.tasks.base import Figure, Score, Task
from trtq.tasks.facts import Facts
from trtq.tasks.registry import TASKS, find_task, stored_task, task_for

__all__ = ["TASKS", "Facts", "Figure", "Score", "Task", "find_task", "stored_task", "task_for"]
