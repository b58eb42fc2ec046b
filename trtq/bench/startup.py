"""Measure load time and memory, each in new processes."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from trtq.bench.record import Load, Memory, Phase
from trtq.bench.startup_worker import Request
from trtq.bench.workload import DEFAULTS, LoadOptions
from trtq.errors import BenchError, last_line
from trtq.export.onnx_file import require_files

PROCESSES = 5
LIMIT_S = 600


class _Start(msgspec.Struct):
    """Output of the worker: phases and the second answer, ns, and the memory where asked for."""

    laps: list[tuple[str, int]]
    second: int
    memory: Memory | None = None


def measure_load(
    path: Path,
    options: LoadOptions = DEFAULTS,
    files: Sequence[Path] = (),
    *,
    cache: Literal["warm", "cold"] = "warm",
    processes: int = PROCESSES,
) -> Load:
    """Return the phases of a start, each the median over new processes.

    Args:
        path: of the file.
        options: device and sizes.
        files: the model's, where they are known; default: those that it names.
        cache: ``warm`` reads the file, and the files with its tensors, before each start; ``cold``
            drops them from the page cache.
        processes: how many starts.

    Raises:
        ExportError: the ONNX file cannot be read, or a file with its tensors is missing.
        BenchError: a process fails, or the file remains in the page cache though it should be cold.
    """
    runs = []
    files = files or require_files(path)[1]
    for _ in range(processes):
        for file in files:
            drop_from_cache(file) if cache == "cold" else _read(file)
        runs.append(_start(path, options, files, memory=False))
    names = [name for name, _ in runs[0].laps]
    times = np.asarray([[ns / 1e6 for _, ns in run.laps] for run in runs])
    lazy = (
        os.environ.get("CUDA_MODULE_LOADING", "LAZY, the default of CUDA 12.2 and later")
        if options.device != "cpu"
        else "no CUDA"
    )
    return Load(
        cache=cache,
        phases=[_phase(n, times[:, i]) for i, n in enumerate(names)],
        total=_phase("first answer", times.sum(axis=1)),
        second=_phase("second answer", np.asarray([run.second / 1e6 for run in runs])),
        processes=processes,
        lazy=lazy,
    )


def measure_memory(
    path: Path, options: LoadOptions = DEFAULTS, files: Sequence[Path] = ()
) -> Memory:
    """Return the memory of a new process that loads a file and serves ten requests.

    Args:
        path: of the file.
        options: device and sizes.
        files: the model's, where they are known; default: those that it names.

    Raises:
        ExportError: the ONNX file cannot be read, or a file with its tensors is missing.
        BenchError: the process fails.
    """
    memory = _start(path, options, files or require_files(path)[1], memory=True).memory
    assert memory is not None
    return memory


def _phase(name: str, ms: Any) -> Phase:
    return Phase(name=name, median=float(np.median(ms)), low=float(ms.min()), high=float(ms.max()))


def _read(path: Path) -> None:
    """Put a file into the page cache."""
    with path.open("rb") as handle:
        while handle.read(1 << 20):
            pass


def _start(path: Path, options: LoadOptions, files: Sequence[Path], *, memory: bool) -> _Start:
    request = Request(
        file=str(path),
        files=[str(f) for f in files],
        device=options.device,
        batch=options.batch,
        shapes=list(options.shapes),
        memory=memory,
        started=time.perf_counter_ns(),
    )
    try:
        line = [sys.executable, "-m", "trtq.bench.startup_worker", json.dumps(request)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired as exc:
        raise BenchError(
            f"A new process cannot load {path.name}", f"it had not answered after {LIMIT_S} s"
        ) from exc
    if done.returncode:
        raise BenchError(
            f"A new process cannot load {path.name}",
            last_line(done.stderr) or f"exit status {done.returncode}",
        )
    return msgspec.json.decode(done.stdout.strip().splitlines()[-1], type=_Start)


def drop_from_cache(path: Path) -> None:
    """Drop a file from the page cache, without root, and check the result.

    Raises:
        BenchError: the system keeps it.
    """
    with path.open("rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    cached = cached_share(path)
    if cached > 0.01:
        raise BenchError(
            f"Cannot measure a cold start of {path.name}",
            f"{cached:.0%} of it remains in the page cache",
            "Put it on a local disk that is not a memory file system",
        )


def cached_share(path: Path) -> float:
    """Return the share of a file's pages that are in memory (mincore), 0 to 1; 0 for an empty file.

    Raises:
        BenchError: the system does not tell.
    """
    size = path.stat().st_size
    if not size:
        return 0.0
    pages = (size + mmap.PAGESIZE - 1) // mmap.PAGESIZE
    with path.open("r+b" if os.access(path, os.W_OK) else "rb") as handle:
        access = mmap.ACCESS_COPY  # a private map: ctypes asks for one it may write to
        with mmap.mmap(handle.fileno(), size, access=access) as pages_of_file:
            flags = (ctypes.c_ubyte * pages)()
            anchor = ctypes.c_char.from_buffer(pages_of_file)
            address = ctypes.addressof(anchor)
            failed = ctypes.CDLL(None, use_errno=True).mincore(
                ctypes.c_void_p(address), ctypes.c_size_t(size), flags
            )
            del anchor
    if failed:
        raise BenchError(
            f"Cannot tell whether {path.name} is in the page cache", os.strerror(ctypes.get_errno())
        )
    return sum(f & 1 for f in flags) / pages
