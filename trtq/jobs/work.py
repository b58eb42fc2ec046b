"""One run: ``trtq run`` in a process of its own, and its files into the store.

Also a program, for machines that a queue chooses: ``python -m trtq.jobs.work JOBS NUMBER`` does
the job in ``JOBS/job-NUMBER.json`` and writes ``JOBS/ended-NUMBER.json``.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from trtq.artifact import read_record, write_json
from trtq.errors import TrtqError
from trtq.files import RECIPE_TOML, RUN_LOG
from trtq.jobs.leases import this_driver
from trtq.jobs.store import Store, Upload
from trtq.jobs.toml_text import toml_text
from trtq.machine import package_version
from trtq.recipe import read_toml

PACKAGES = ("trtq", "torch", "timm", "torchvision", "onnx", "onnxruntime", "onnxscript", "numpy")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
ANOTHER = -1000  # exit code of a run that a worker with other versions refused
LOG_BYTES = 20_000  # of a log that is restored from another machine
NOT_VALID = 3  # exit code of a command whose figures may not be used
ENDING_S = 10.0  # that a run has to end after SIGTERM

Started = Callable[["subprocess.Popen[bytes]"], None]


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """Input of a worker for one run.

    Attributes:
        name: of the run; key: its content address.
        recipe: TOML text.
        folder: where the recipe writes; "" for a temporary folder of the worker.
        cwd: where relative paths of the recipe start; "" for the worker's own.
        url: of the store; "" leaves the files in the folder.
        project: whose store it is.
        leave_out: patterns of files that the store does not get.
        threads: of the processor.
        gpus: for CUDA_VISIBLE_DEVICES; None leaves it as it is.
        versions: of the driver, which the worker must have; {} for any.
    """

    name: str
    key: str
    recipe: str
    folder: str
    cwd: str
    url: str = ""
    project: str = ""
    leave_out: tuple[str, ...] = ()
    threads: int
    gpus: tuple[str, ...] | None = None
    versions: dict[str, str] = {}


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a job ended.

    Attributes:
        name: of the run.
        code: exit code of ``trtq run``; below 0 the signal that ended it.
        seconds: that it took.
        reason: of a failure, "" for none.
        upload: its files in the store; None where it failed.
        host: of the worker.
        log: the end of what it printed.
    """

    name: str
    code: int
    seconds: float = 0.0
    reason: str = ""
    upload: Upload | None = None
    host: str = ""
    log: str = ""


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    known = {n: package_version(n) for n in PACKAGES}
    return {"python": platform.python_version(), **{n: v for n, v in known.items() if v}}


def perform(job: Job, started: Started | None = None) -> Ended:
    """Do a job and return how it ended; errors are a reason, not an exception.

    Args:
        job: what to do.
        started: receives the process of ``trtq run``.

    Returns:
        ``reason`` is set where the exit code is neither 0 nor 3 (figures not valid), or the store
        did not take the files; else ``upload`` is, where there is a store.
    """
    other = _differences(job.versions)
    host = socket.gethostname()
    if other:
        return Ended(name=job.name, code=ANOTHER, reason=f"{host} has {other}", host=host)
    with _folder(job) as folder:
        begun = time.monotonic()
        code, log = _run(job, folder, started)
        ended = Ended(
            name=job.name,
            code=code,
            seconds=round(time.monotonic() - begun, 3),
            reason="" if code in (0, NOT_VALID) else _reason(code, log),
            host=host,
            log=log,
        )
        if ended.reason or not job.url:
            return ended
        try:
            return msgspec.structs.replace(ended, upload=_upload(job, folder))
        except TrtqError as exc:
            return msgspec.structs.replace(ended, reason=exc.coded)


def _differences(wanted: dict[str, str]) -> str:
    own = versions()
    wrong = [(n, v) for n, v in wanted.items() if own.get(n) != v]
    return ", ".join(f"{n} {own.get(n, 'missing')} (expected {v})" for n, v in wrong)


@contextlib.contextmanager
def _folder(job: Job) -> Iterator[Path]:
    """Yield the folder of a run; a temporary one is removed."""
    if job.folder:
        folder = Path(job.cwd, job.folder)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    folder = Path(tempfile.mkdtemp(prefix="trtq-sweep-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(job: Job, folder: Path, started: Started | None) -> tuple[int, str]:
    """Run ``trtq run`` and return its exit code and the end of its log."""
    recipe, log = folder / RECIPE_TOML, folder / RUN_LOG
    recipe.write_text(job.recipe, encoding="utf-8")
    if not job.folder:
        recipe.write_text(toml_text({**read_toml(recipe), "out": str(folder)}), encoding="utf-8")
    words = [sys.executable, "-m", "trtq", "run", str(recipe.absolute())]
    before = log.stat().st_size if log.is_file() else 0  # of an attempt that was interrupted
    with log.open("ab") as output:
        process = subprocess.Popen(
            words,
            cwd=job.cwd or None,
            env=_environment(job),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if started is not None:
                started(process)
            while process.poll() is None:  # in steps: an interrupt of Ray is seen between two
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(1.0)
        finally:
            end(process)
    with log.open("rb") as whole:
        whole.seek(max(before, log.stat().st_size - LOG_BYTES))
        return process.returncode, whole.read().decode(errors="replace")


def _environment(job: Job) -> dict[str, str]:
    gpus = {} if job.gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(job.gpus)}
    return {**os.environ, **dict.fromkeys(THREADS, str(job.threads)), **gpus}


def end(process: subprocess.Popen[bytes]) -> None:
    """End a run and all that it started, if it still runs.

    The process group gets SIGTERM, and SIGKILL after 10 s.

    Args:
        process: leader of its own process group.
    """
    for number, patience in ((signal.SIGTERM, ENDING_S), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _reason(code: int, log: str) -> str:
    """Return why a run failed, in its own words."""
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        hint = "; the system may have run out of memory" if -code == signal.SIGKILL else ""
        return f"it was ended by {name}{hint}"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    own = next((ln for ln in reversed(lines) if ln.startswith("trtq: ")), "")
    return own.removeprefix("trtq: ") or f"exit code {code}: {(lines or ['no output'])[-1]}"


def _upload(job: Job, folder: Path) -> Upload:
    store = Store.open(job.url, this_driver(lease=1.0), project=job.project, create=False)
    return store.upload(job.key, folder, job.leave_out)


def main(folder: Path, number: str) -> None:
    """Do the job of a number and write how it ended.

    Args:
        folder: with ``job-NUMBER.json``; ``ended-NUMBER.json`` is written there.
        number: of the job.

    Raises:
        ArtifactError: the job cannot be read, or the result cannot be written.
    """
    job = read_record(folder / f"job-{number}.json", Job, kind="job")
    write_json(folder / f"ended-{number}.json", perform(job))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
