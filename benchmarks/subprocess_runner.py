"""Run each row in a process of its own.

A row that fails or runs out of memory does not take the others with it.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Sequence
from typing import Any

PREFIX = "RESULT "


class Forked:
    """Runs functions in processes that are forked from one that has imported their libraries.

    Args:
        preload: modules to import once; those that are missing are left out.
        seconds: end a process and its children after that time.
        gigabytes: most memory of its own that a process may allocate, in 10^9 bytes.
    """

    def __init__(self, preload: Sequence[str], *, seconds: float, gigabytes: float) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(preload))
        self.seconds, self.size = seconds, int(gigabytes * 1e9)

    def run(self, function: Callable[..., dict[str, Any]], *args: Any) -> dict[str, Any]:
        """Return a function's result, or an ``error`` that says why there is none."""
        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=_answer, args=(there, self.size, function, args))
        process.start()
        there.close()
        try:
            if not here.poll(self.seconds):
                return {"error": f"stopped after {self.seconds:.0f} s"}
            result = dict(here.recv())
            process.join(5)
            return result
        except EOFError:
            process.join()
            return {"error": f"died: exit code {process.exitcode}"}
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()


def _answer(
    pipe: Any, size: int, function: Callable[..., dict[str, Any]], args: tuple[Any, ...]
) -> None:
    """Run a function in a process of its own and send what it returns."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))
    try:
        result = function(*args)
    except Exception as exc:  # a row of a table
        result = {"error": f"{type(exc).__name__}: {exc}"}
    pipe.send(result)


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
