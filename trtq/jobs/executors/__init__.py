"""Where runs are executed: one file each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from trtq import extensions
from trtq.jobs.work import Ended, Job
from trtq.progress import Progress
from trtq.specs.sweep import Slots

EXECUTORS = {
    "local": "trtq.jobs.executors.local",
    "ray": "trtq.jobs.executors.ray",
    "slurm": "trtq.jobs.executors.slurm",
}


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of an executor.

    Attributes:
        folder: for its own files.
        slots: what one run takes.
        workers: most runs at a time; None for what the slots allow.
        retries: of a run that was ended from outside.
        address: of a cluster; "" for the usual one.
        sbatch: further options of a queue.
    """

    folder: Path
    slots: Slots
    workers: int | None = None
    retries: int = 0
    address: str = ""
    sbatch: tuple[str, ...] = ()


class Executor(Protocol):
    """Executes jobs.

    A module named in the table, or an extension, has a function ``open_executor`` that takes
    :class:`Settings` and a :class:`~trtq.progress.Progress` and returns one. It refuses what cannot
    be executed.

    Attributes:
        name: of the executor.
        workers: jobs at a time.
        shared: whether jobs see the folders of this machine; else each works in a temporary one.
    """

    name: str
    workers: int
    shared: bool

    def room(self) -> int:
        """Return how many more jobs may be submitted now.

        A number below 0 is possible after a retry, and counts as 0.
        """

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs, at most :meth:`room` of them."""

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended, after at most ``seconds`` when there are none.

        Args:
            seconds: at most; it may return earlier.
        """

    def close(self) -> None:
        """End all jobs that still run, and release what the executor holds; twice is no error."""


def open_executor(name: str, settings: Settings, progress: Progress) -> Executor:
    """Return the executor of a name.

    Args:
        name: in ``EXECUTORS``, ``module:name``, or an entry point.
        settings: what it is made from.
        progress: receives lines about automatic choices.

    Raises:
        UsageError: unknown, or it cannot give what a run takes.
        MissingExtraError: its package is not installed.
    """
    executor: Executor = maker_of(name)(settings, progress)
    return executor


def maker_of(name: str) -> Callable[[Settings, Progress], Executor]:
    """Return the function that opens the executor of a name.

    Args:
        name: as for :func:`open_executor`.

    Raises:
        UsageError: it is unknown.
    """
    make: Callable[[Settings, Progress], Executor]
    if name in EXECUTORS:
        make = importlib.import_module(EXECUTORS[name]).open_executor
    else:
        make = extensions.load("executors", name, built_in=tuple(EXECUTORS))
    return make
