"""Runs as tasks of arrays in Slurm's queue, in folders that all nodes see."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from trtq.artifact import ensure_writable_dir, read_record, write_bytes, write_json
from trtq.errors import MissingExtraError, TrtqError, UsageError, first_line
from trtq.jobs.executors import Settings
from trtq.jobs.work import Ended, Job
from trtq.progress import Progress

MOST = 500  # tasks of this sweep in the queue at a time, without --workers
# The same for all sweeps: what differs comes as arguments and from Slurm's own variables.
SCRIPT = b"""#!/bin/sh
exec "$1" -m trtq.jobs.work "$2" "$SLURM_ARRAY_TASK_ID"
"""
ASK_S = 5.0  # between two questions to the queue
LATE_S = 30.0  # that a file may take to appear on a shared file system
LOST = 1  # code of a run that left no result
COMMANDS = ("sbatch", "squeue", "scancel")


def open_executor(settings: Settings, progress: Progress) -> SlurmExecutor:
    """Return an executor on Slurm's queue.

    Raises:
        MissingExtraError: this machine submits to no queue.
        UsageError: custom resources, which Slurm calls otherwise.
    """
    missing = [c for c in COMMANDS if shutil.which(c) is None]
    if missing:
        raise MissingExtraError(
            "Cannot use --on slurm",
            f"there is no {' and no '.join(missing)} on PATH",
            "Run the sweep on a login node of the cluster",
        )
    if settings.slots.resources:
        raise UsageError(
            f"Slurm has no resource {' and '.join(settings.slots.resources)}",
            "it has generic resources and licenses of its own names",
            'Set sbatch = ["--gres=NAME:1"] under [sweep], and leave resources out',
        )
    if shutil.which("sacct") is None:
        progress.note("there is no sacct: a run that Slurm ends has no reason in the record")
    folder = ensure_writable_dir(settings.folder / "slurm").absolute()
    return SlurmExecutor(settings, folder)


@dataclass(slots=True)
class _Array:
    """One submitted array: the jobs that have not ended, by number.

    Attributes:
        gone: when a task was first seen to be in the queue no more.
    """

    id: str
    folder: Path
    jobs: dict[int, Job]
    gone: dict[int, float] = field(default_factory=dict)


class SlurmExecutor:
    """Arrays in the queue.

    Args:
        settings: slots, retries and further options of sbatch.
        folder: for the files of arrays, on a file system that all nodes see.
    """

    name = "slurm"
    shared = True

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.workers = settings.workers or MOST
        self._settings, self._folder = settings, folder
        self._arrays: list[_Array] = []
        self._asked = 0.0

    def room(self) -> int:
        """Return how many more jobs may be submitted now."""
        return self.workers - sum(len(a.jobs) for a in self._arrays)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Submit jobs as one array.

        Raises:
            UsageError: Slurm refuses it.
        """
        folder = ensure_writable_dir(self._folder / f"array-{time.time_ns()}")
        for number, job in enumerate(jobs):
            own = msgspec.structs.replace(job, threads=self._settings.slots.threads)
            write_json(folder / f"job-{number}.json", own)
        script = write_bytes(folder / "array.sh", SCRIPT)
        words = ["sbatch", "--parsable", *self._options(len(jobs), folder), str(script)]
        done = _ask([*words, sys.executable, str(folder)])
        if done.returncode:
            raise UsageError(
                "Slurm refuses the sweep",
                first_line(done.stderr) or f"sbatch ended with {done.returncode}",
                'Set options such as sbatch = ["--partition=gpu"] under [sweep]',
            )
        array = done.stdout.strip().partition(";")[0]  # behind it a cluster's name
        self._arrays.append(_Array(array, folder, dict(enumerate(jobs))))

    def _options(self, count: int, folder: Path) -> list[str]:
        slots = self._settings.slots
        gpus = [f"--gres=gpu:{slots.gpus}"] if slots.gpus else []
        return [
            f"--array=0-{count - 1}",
            "--job-name=trtq-sweep",
            f"--cpus-per-task={slots.threads}",
            f"--output={folder}/log-%a.txt",
            *gpus,
            *self._settings.sbatch,
        ]

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended."""
        done = [e for array in self._arrays for e in self._written(array)]
        if not done and time.monotonic() - self._asked >= ASK_S:
            done = [e for array in self._arrays for e in self._lost(array)]
            self._asked = time.monotonic()
        self._arrays = [a for a in self._arrays if a.jobs]
        if not done:
            time.sleep(seconds)
        return done

    def _written(self, array: _Array) -> list[Ended]:
        """Return the jobs that left a result."""
        done = list[Ended]()
        for number in list(array.jobs):
            file = array.folder / f"ended-{number}.json"
            if file.is_file():
                done.append(read_record(file, Ended, kind="result of a job"))
                del array.jobs[number]
        return done

    def _lost(self, array: _Array) -> list[Ended]:
        """Return the jobs that are in the queue no more and left no result."""
        queued = _queued(array.id)
        if queued is None:  # the queue does not answer; it is asked again
            return []
        now, done = time.monotonic(), list[Ended]()
        for number in [n for n in array.jobs if n not in queued]:
            if now - array.gone.setdefault(number, now) >= LATE_S:
                job = array.jobs.pop(number)
                done.append(Ended(name=job.name, code=LOST, reason=_why(array, number)))
        return done

    def close(self) -> None:
        """Cancel all tasks that are in the queue."""
        for array in self._arrays:
            _ask(["scancel", array.id])
        self._arrays = []


def _ask(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm.

    Raises:
        TrtqError: it cannot be started.
    """
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise TrtqError(f"Cannot ask Slurm ({words[0]})", first_line(str(exc))) from exc


def _queued(array: str) -> set[int] | None:
    """Return the tasks of an array that wait or run; None where the queue does not answer."""
    done = _ask(["squeue", "--noheader", "--array", f"--jobs={array}", "--format=%i"])
    if done.returncode and "Invalid job id" not in done.stderr:
        return None
    tasks = (line.strip().partition("_")[2] for line in done.stdout.splitlines())
    return {int(t) for t in tasks if t.isdigit()}


def _why(array: _Array, number: int) -> str:
    """Return why Slurm ended a task, as far as it says so."""
    states = list[str]()
    if shutil.which("sacct") is not None:
        words = ["sacct", "--noheader", "--parsable2", "--allocations"]
        done = _ask([*words, f"--jobs={array.id}_{number}", "--format=State,ExitCode"])
        states = [line.replace("|", ", exit code ") for line in done.stdout.splitlines()]
    log = array.folder / f"log-{number}.txt"
    try:
        last = [ln for ln in log.read_text(errors="replace").splitlines() if ln.strip()][-1:]
    except OSError:
        last = []
    explanation = "; ".join([*states[:1], *(first_line(ln) for ln in last)])
    return f"it left the queue without a result: {explanation or 'Slurm says no more'}"
