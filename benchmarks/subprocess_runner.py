"""Run each row in a process of its own.

A row that fails or runs out of memory does not take the others with it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from typing import Any

PREFIX = "RESULT "


def run_apart(
    line: list[str], *, seconds: float | None = None, gigabytes: float | None = None
) -> dict[str, Any]:
    """Return what the process printed as its result.

    Without a result, return an ``error`` with the last line that the process wrote.

    Args:
        line: the command.
        seconds: end the process and its children after that time.
        gigabytes: most memory of its own that it may allocate, in 10^9 bytes.
    """
    process = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    if gigabytes is not None:
        size = int(gigabytes * 1e9)
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (size, size))
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return {"error": f"stopped after {seconds:.0f} s"}
    row = next((ln for ln in out.splitlines() if ln.startswith(PREFIX)), None)
    return (
        json.loads(row[len(PREFIX) :])
        if row
        else {"error": f"died: {(err.strip().splitlines() or ['no output'])[-1][:120]}"}
    )


def print_result(result: dict[str, Any]) -> None:
    """Print a result as :func:`run_apart` reads it."""
    print(PREFIX + json.dumps(result))
