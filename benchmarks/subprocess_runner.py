"""Run each row in a process of its own.

A row that fails or runs out of memory does not take the others with it.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

PREFIX = "RESULT "


def run_apart(line: list[str]) -> dict[str, Any]:
    """Return what the process printed as its result.

    Without a result, return an ``error`` with the last line that the process wrote.
    """
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    row = next((ln for ln in done.stdout.splitlines() if ln.startswith(PREFIX)), None)
    return (
        json.loads(row[len(PREFIX) :])
        if row
        else {"error": f"died: {(done.stderr.strip().splitlines() or ['no output'])[-1][:120]}"}
    )


def print_result(result: dict[str, Any]) -> None:
    """Print a result as :func:`run_apart` reads it."""
    print(PREFIX + json.dumps(result))
