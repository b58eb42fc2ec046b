"""The software and the processor of this machine, for records."""

from __future__ import annotations

import contextlib
import functools
import platform
from pathlib import Path


@functools.cache  # reading one takes 3 ms, and a record has ten
def package_version(name: str) -> str | None:
    """Return the installed version of a distribution, or None."""
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
