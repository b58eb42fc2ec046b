"""Several commands of one verb, carried out by an executor in folders that all workers see."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from trtq.artifact import digest_of, ensure_writable_dir
from trtq.errors import UsageError
from trtq.files import RUN_LOG
from trtq.jobs.executors import Executor
from trtq.jobs.toml_text import toml_text
from trtq.jobs.work import ANOTHER, Ended, Job, versions
from trtq.one_verb import RESULT
from trtq.progress import Progress
from trtq.specs import Spec

POLL_S = 1.0


def job_of(name: str, verb: str, spec: Spec) -> Job:
    """Return the job that does one verb in the folder of its spec.

    Args:
        name: for lines about it; no two jobs may share it.
        verb: such as ``fleet``.
        spec: what the verb is asked for; its ``out`` is a folder that all workers see.
    """
    values: dict[str, object] = msgspec.to_builtins(spec)
    out = str(Path(str(values.pop("out"))).absolute())
    fields = msgspec.structs.fields(spec)
    usual = {f.name for f in fields if getattr(spec, f.name) == f.default}
    given = {k: v for k, v in values.items() if k not in usual}
    recipe = toml_text({"out": out, verb: given})
    return Job(
        name=name,
        key=digest_of(recipe),
        recipe=recipe,
        folder=out,
        cwd=str(Path.cwd()),
        threads=1,
    )


def carry_out(jobs: Sequence[Job], executor: Executor, progress: Progress) -> dict[str, Ended]:
    """Do all jobs and return how each ended, by name; the executor is closed.

    Args:
        jobs: of :func:`job_of`.
        executor: that does them.
        progress: receives what the jobs print, with their names in front.

    Raises:
        UsageError: the workers have other versions than this machine.
    """
    required = versions_for(executor)
    jobs = [msgspec.structs.replace(j, versions=required) for j in jobs]
    waiting, ended = deque(jobs), dict[str, Ended]()
    logs = [_Log(j, progress.note) for j in jobs]
    with contextlib.closing(executor):
        while len(ended) < len(jobs):
            room = min(executor.room(), len(waiting))
            if room > 0:
                executor.submit([waiting.popleft() for _ in range(room)])
            just = executor.wait(POLL_S)
            require_same_versions(just)
            ended |= {e.name: e for e in just}
            for log in logs:
                log.pass_on()
    return ended


def versions_for(executor: Executor) -> dict[str, str]:
    """Return the versions that workers must have; {} for processes of this machine.

    Args:
        executor: of the jobs.
    """
    return {} if executor.name == "local" else versions()


def require_same_versions(ended: Sequence[Ended]) -> None:
    """Refuse workers whose results could not be compared with those of this machine.

    Args:
        ended: how jobs ended.

    Raises:
        UsageError: a worker has other versions.
    """
    refused = next((e for e in ended if e.code == ANOTHER), None)
    if refused is not None:
        raise UsageError(
            "The workers have other versions than this machine",
            refused.reason,
            "Install the same versions on all of them: their results must be comparable",
        )


class _Log:
    """Output of a job, line by line, until its result.

    Args:
        job: in a folder that this machine sees.
        note: receives the lines.
    """

    def __init__(self, job: Job, note: Callable[[str], None]) -> None:
        self._path, self._name, self._note = Path(job.folder) / RUN_LOG, job.name, note
        ensure_writable_dir(self._path.parent)
        self._at = self._path.stat().st_size if self._path.is_file() else 0

    def pass_on(self) -> None:
        """Pass on the whole lines that were written since the last call."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._at += len(whole) + len(newline)
        for line in whole.decode(errors="replace").splitlines():
            if line == RESULT:
                self._note = _ignored
            elif line.strip():
                self._note(f"{self._name}: {line.strip()}")


def _ignored(line: str) -> None:
    """Ignore the table that the caller's own replaces."""
