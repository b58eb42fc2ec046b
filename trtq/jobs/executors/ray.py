"""Runs as tasks of a Ray cluster, or of one that is started on this machine.

A task calls ``trtq run`` in a process. Ray counts CPUs, GPUs and custom resources, and starts a
task again whose worker or node is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from trtq.errors import MissingExtraError, UsageError, first_line, reason
from trtq.jobs.executors import Settings
from trtq.jobs.executors.ray_task import work
from trtq.jobs.work import ENDING_S, Ended, Job
from trtq.progress import Progress
from trtq.specs.sweep import Slots

HINT = (
    "Start one (ray start --head), or leave --address and RAY_ADDRESS out to use this machine; "
    "the token of a cluster that asks for one belongs into RAY_AUTH_TOKEN"
)
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
ANSWER_S = 10.0
OWN_MEMORY = ("memory", "object_store_memory")  # resources that no run asks for
LOST = 1  # code of a run whose worker is lost


def open_executor(settings: Settings, progress: Progress) -> RayExecutor:
    """Return an executor on a Ray cluster.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: no cluster at the address, or it has none of what a run takes.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS", "")
    if address not in ("", "local"):
        _show_token()
    try:
        import ray
    except ImportError as exc:
        raise MissingExtraError(
            "Cannot use --on ray", "Ray is not installed", "pip install 'trtq[ray]'"
        ) from exc
    if address in ("", "local"):
        _start_here(ray, settings)
        progress.note("no Ray cluster is named: Ray is started on this machine for these runs")
    else:
        _connect(ray, address)
    try:
        capacity = _capacity(ray.cluster_resources(), settings.slots)
    except BaseException:
        ray.shutdown()
        raise
    workers = settings.workers or capacity
    return RayExecutor(ray, settings, workers, shared=address in ("", "local"))


def _show_token() -> None:
    """Let Ray show the token of a cluster where there is one.

    Clusters of Ray 2.60 and later ask for it; ``ray.init`` shows it only in that mode, which Ray
    reads when it is imported.
    """
    named = any(os.environ.get(n) for n in TOKENS)
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _start_here(ray: Any, settings: Settings) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster's owner decides for others
    cores = len(os.sched_getaffinity(0))
    wanted = (settings.workers or 1) * settings.slots.cpus
    ray.init(address="local", num_cpus=max(cores, wanted), include_dashboard=False, **_quiet())


def _connect(ray: Any, address: str) -> None:
    """Connect to a cluster.

    Raises:
        UsageError: it does not answer, or has another version of Ray or Python.
    """
    _require_answer(address)
    try:
        ray.init(address=address, **_quiet())
    except Exception as exc:  # connection, version and value errors are of many kinds
        raise UsageError(f"Cannot use the Ray cluster at {address}", first_line(exc), HINT) from exc


def _require_answer(address: str) -> None:
    """Refuse an address where nobody listens; Ray itself asks it for minutes.

    Raises:
        UsageError: says what the connection failed with.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():  # such as auto
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as exc:
        raise UsageError(f"Cannot use the Ray cluster at {address}", reason(exc), HINT) from exc


def _quiet() -> dict[str, object]:
    return {"log_to_driver": False, "logging_level": logging.ERROR}


def _needs(slots: Slots) -> dict[str, float]:
    """Return what a run takes, as Ray names it."""
    own = {"CPU": float(slots.cpus), "GPU": float(slots.gpus)}
    return {n: v for n, v in {**own, **slots.resources}.items() if v}


def _capacity(cluster: dict[str, float], slots: Slots) -> int:
    """Return how many runs the cluster can do at a time.

    Raises:
        UsageError: none, because something is missing.
    """
    needs = _needs(slots)
    lacking = [n for n, v in needs.items() if cluster.get(n, 0.0) < v]
    if lacking:
        resources = ", ".join(f"{v:g} {n}" for n, v in sorted(cluster.items()) if _is_shown(n))
        raise UsageError(
            f"The Ray cluster has too little {' and '.join(lacking)}",
            f"a run takes {', '.join(f'{v:g} {n}' for n, v in needs.items())}; the cluster has "
            f"{resources}",
            "Change [sweep.slots], or start nodes with it (ray start --resources)",
        )
    return min((int(cluster[n] // v) for n, v in needs.items()), default=int(cluster["CPU"]))


def _is_shown(resource: str) -> bool:
    return ":" not in resource and resource not in OWN_MEMORY


class RayExecutor:
    """Tasks of a Ray cluster.

    Args:
        ray: the package.
        settings: slots and retries.
        workers: tasks at a time.
        shared: whether the cluster is this machine.
    """

    name = "ray"

    def __init__(self, ray: Any, settings: Settings, workers: int, *, shared: bool) -> None:
        self._ray, self.workers, self.shared = ray, workers, shared
        slots = settings.slots
        self._retries, self._threads = settings.retries, slots.threads
        self._task = ray.remote(
            num_cpus=slots.cpus,
            num_gpus=slots.gpus,
            resources=slots.resources,
            max_retries=settings.retries,
        )(work)
        self._running: dict[Any, Job] = {}
        self._tries: dict[str, int] = {}

    def room(self) -> int:
        """Return how many more jobs may be submitted now."""
        return self.workers - len(self._running)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Start a task for each job."""
        for job in jobs:
            own = msgspec.structs.replace(job, threads=self._threads)
            self._tries[job.name] = self._tries.get(job.name, 0) + 1
            self._running[self._task.remote(msgspec.json.encode(own))] = job

    def wait(self, seconds: float) -> list[Ended]:
        """Return the jobs that have ended; those that a signal ended are tried again."""
        if not self._running:
            time.sleep(seconds)
            return []
        tasks = list(self._running)
        ready, _ = self._ray.wait(tasks, num_returns=1, timeout=seconds)
        if ready:
            ready, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=0)
        done = [(self._running.pop(task), self._result(task)) for task in ready]
        again = [job for job, ended in done if self._is_tried_again(ended, job)]
        self.submit(again)
        kept = {job.name for job in again}
        return [
            msgspec.structs.replace(ended, name=job.name)
            for job, ended in done
            if job.name not in kept
        ]

    def _is_tried_again(self, ended: Ended, job: Job) -> bool:
        return -65 < ended.code < 0 and self._tries[job.name] <= self._retries

    def _result(self, task: Any) -> Ended:
        try:
            return msgspec.json.decode(self._ray.get(task), type=Ended)
        except self._ray.exceptions.RayError as exc:
            lines = [ln for ln in str(exc).splitlines() if ln.strip()]
            why = first_line(lines[-1] if lines else type(exc).__name__)
            return Ended(name="", code=LOST, reason=f"Ray lost it: {why}")

    def close(self) -> None:
        """Cancel all tasks that still run, and leave the cluster."""
        tasks = list(self._running)
        with contextlib.suppress(Exception):  # a cluster that is gone cancels nothing
            for task in tasks:
                self._ray.cancel(task, force=False, recursive=True)
            if tasks:
                self._ray.wait(tasks, num_returns=len(tasks), timeout=ENDING_S)
        self._running.clear()
        self._ray.shutdown()
