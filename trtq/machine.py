"""The software and the processor of this machine, for records."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
from pathlib import Path


@functools.cache  # reading one takes 3 ms, and a record has ten
def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None.

    Args:
        name: of the distribution, such as ``tensorrt-rtx-cu13``.
    """
    from importlib import metadata  # 40 ms, and most commands ask for no version

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """Return the processor's model name where Linux reports it, else the architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith(("model name", "Model")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def yield_cores_() -> None:
    """Let the threads of torch sleep when they wait for each other, unless the user chose.

    By default they spin, and beside one other busy process on two cores the spinning thread keeps
    the core from the one it waits for: a small CNN takes 9 times as long. Asleep it takes 1.3 times
    as long there, and the same on a quiet machine. The OpenMP library reads this when it is loaded,
    so it is set before torch is.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def given_threads() -> int:
    """Return the number of threads that ``OMP_NUM_THREADS`` gives a process, 0 where it does not.

    The first number counts: the others are for nested threads.
    """
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdigit() else 0
