"""The builder's process, as seen from here.

It can be started before its request is known, and loads TensorRT in that time.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from trtq.platform.target import Target
from trtq.scratch import scratch_file
from trtq.specs import BuildSpec

RTX = "tensorrt_rtx"
_early: list[Worker] = []


@dataclass
class Worker:
    """One process of :mod:`trtq.engine.worker`.

    It waits for its request and ends when this process does.

    Attributes:
        module: of TensorRT that it loads.
        process: its standard input takes one request as JSON, and must then be closed.
        errors: its error output, a file without a name; the caller that waits for the worker closes
            it.
    """

    module: str
    process: subprocess.Popen[str]
    errors: IO[str]


def start(module: str) -> Worker:
    """Start a worker that loads ``module``, or return the one that was started early."""
    worker = next((w for w in _early if w.module == module), None)
    if worker is not None:
        _early.remove(worker)
        return worker
    errors = scratch_file()  # the caller that waits for the worker closes it
    process = subprocess.Popen(
        [sys.executable, "-m", "trtq.engine.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=os.environ | {"TRTQ_TENSORRT": module},
        errors="replace",
    )
    return Worker(module, process, errors)


def start_early(spec: BuildSpec) -> None:
    """Start the worker of TensorRT for RTX early.

    This happens where the build needs it for every file. The worker loads TensorRT while
    the file is read.
    """
    if spec.target is None:  # the file says it
        return
    target = Target.parse(spec.target)
    # Q/DQ files need full TensorRT where TensorRT for RTX computes in float.
    covered = target.rtx and "INT8" in target.facts.rtx
    if spec.backend in ("auto", "tensorrt-rtx") and covered and is_installed(RTX):
        _early.append(start(RTX))
        atexit.register(end_early)


def end_early() -> None:
    """End workers that were started early and never asked."""
    while _early:
        worker = _early.pop()
        with worker.errors, worker.process:
            worker.process.kill()


@contextlib.contextmanager
def ended_with(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Wait for a process at the end of the block.

    If this process is interrupted or fails, it ends the other at once instead.
    """
    with process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def is_installed(module: str) -> bool:
    """Whether ``module`` can be imported; a folder of type stubs does not count."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None
