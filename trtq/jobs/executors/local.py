"""Runs in processes of this machine, each with its share of the processor and GPUs of its own."""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import threading
from collections.abc import Sequence

import msgspec

from trtq.errors import UsageError
from trtq.jobs.executors import Settings
from trtq.jobs.work import Ended, Job, end, perform
from trtq.progress import Progress


def open_executor(settings: Settings, progress: Progress) -> LocalExecutor:
    """Return an executor on this machine.

    Raises:
        UsageError: a run takes more than there is.
    """
    slots = settings.slots
    if slots.resources:
        raise UsageError(
            f"This machine cannot give a run {' and '.join(slots.resources)}",
            "processes have cpus and gpus only",
            "Use --on ray, or leave [sweep.slots] resources out",
        )
    cpus, gpus = len(os.sched_getaffinity(0)), _gpus() if slots.gpus else []
    if slots.gpus > len(gpus):
        raise UsageError(
            f"A run takes {slots.gpus} GPUs",
            f"this machine has {len(gpus)}",
            "Lower [sweep.slots] gpus, or use --on ray or --on slurm",
        )
    most = min(max(1, cpus // slots.threads), len(gpus) // slots.gpus if slots.gpus else cpus)
    workers = min(settings.workers or most, len(gpus) // slots.gpus if slots.gpus else 10**6)
    if settings.workers and settings.workers > workers:
        progress.note(f"{workers} runs at a time: there are {len(gpus)} GPUs")
    if workers * slots.cpus > cpus:
        progress.note(
            f"{workers} runs with {slots.cpus} threads each share {cpus} cores: each is slower, "
            "and latencies measured in them are not valid"
        )
    return LocalExecutor(workers, slots.threads, slots.gpus, gpus)


def _gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [g.strip() for g in given.split(",") if g.strip() and g.strip() != "-1"]
    import pynvml

    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        return [str(i) for i in range(pynvml.nvmlDeviceGetCount())]
    return []


class LocalExecutor:
    """Threads that each wait for one process.

    Args:
        workers: processes at a time.
        threads: of the processor, for each.
        gpus: that each takes.
        devices: GPUs there are.
    """

    name = "local"
    shared = True

    def __init__(self, workers: int, threads: int, gpus: int, devices: list[str]) -> None:
        self.workers, self._threads, self._gpus = workers, threads, gpus
        self._free, self._busy = list(devices), 0
        self._ended: queue.Queue[tuple[Job, Ended | BaseException]] = queue.Queue()
        self._lock, self._closed = threading.Lock(), False
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._waiting: list[threading.Thread] = []

    def room(self) -> int:
        """Return how many more jobs may be submitted now."""
        return self.workers - self._busy

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start jobs, each in a process."""
        for job in jobs:
            taken = tuple(self._free.pop(0) for _ in range(self._gpus))
            own = msgspec.structs.replace(
                job, threads=self._threads, gpus=taken if self._gpus else None
            )
            self._busy += 1
            thread = threading.Thread(target=self._do, args=(own,), daemon=True)
            self._waiting.append(thread)
            thread.start()

    def _do(self, job: Job) -> None:
        try:
            ended: Ended | BaseException = perform(job, lambda p: self._started(job, p))
        except BaseException as exc:  # the driver raises it again
            ended = exc
        self._ended.put((job, ended))

    def _started(self, job: Job, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            self._processes[job.name] = process
            closed = self._closed
        if closed:
            end(process)

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended."""
        done = list[Ended]()
        with contextlib.suppress(queue.Empty):
            while True:
                job, ended = self._ended.get(timeout=0.0 if done else max(seconds, 0.001))
                self._busy -= 1
                self._free += job.gpus or ()
                self._processes.pop(job.name, None)
                if isinstance(ended, BaseException):
                    raise ended
                done.append(ended)
        return done

    def close(self) -> None:
        """End all processes that still run."""
        with self._lock:
            self._closed = True
            running = list(self._processes.values())
        enders = [threading.Thread(target=end, args=(p,)) for p in running]
        for thread in enders:
            thread.start()
        for thread in (*enders, *self._waiting):
            thread.join()
