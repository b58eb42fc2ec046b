"""Meaning of a builder's last words: out of memory, no kernel for a node, or something else."""

from __future__ import annotations

import re
import signal

from trtq.errors import BuilderMemoryError, EngineError, MissingKernelError

MEMORY = re.compile(
    r"out of memory|OutOfMemory|bad_alloc|insufficient memory|failed to allocate|Requested "
    r"amount of GPU memory",
    re.IGNORECASE,
)
NO_KERNEL = re.compile(
    r"[Cc]ould not find any implementation for node (.+?)(?: due to .*)?\.?(?: In \w+ at .*|\])?$"
)
KILLED_IN_SHELL = 137


def explain(where: str, errors: list[str], returncode: int, *, last: str = "") -> EngineError:
    """Return the error for a builder that ended without an engine.

    Args:
        where: what failed.
        errors: its error lines.
        returncode: of its process; negative: the signal that ended it.
        last: the last line it wrote, for a builder that gave no error.
    """
    text = "; ".join(dict.fromkeys(errors[:5]))
    killed = _killed_by(returncode)
    if killed == "SIGKILL" or any(MEMORY.search(line) for line in errors):
        why = "the system killed it, most likely for the memory it took"
        return BuilderMemoryError(
            where,
            why if killed == "SIGKILL" else text,
            "Give it less with --workspace, close other programs, or add swap",
        )
    missing = next((m.group(1) for line in errors if (m := NO_KERNEL.search(line))), None)
    if missing is not None:
        return _no_kernel(where, text, missing)
    if killed:
        after = f" after: {text}" if text else ""
        return EngineError(where, f"the builder crashed ({killed}){after}")
    return EngineError(where, text or last or "the builder gave no reason")


def _no_kernel(where: str, text: str, node: str) -> EngineError:
    if "insufficient workspace" in text:
        return EngineError(where, text, "Give the builder more scratch memory: --workspace")
    mend = (
        "Build with --fallback, which leaves that node without Q/DQ pairs, or quantize again with "
        "--high-precision for its layer"
    )
    return MissingKernelError(where, text, mend, node=node)


def _killed_by(returncode: int) -> str:
    """Return the signal that ended a process, "" for one that ended by itself."""
    if returncode == KILLED_IN_SHELL:
        return "SIGKILL"
    return _signal_name(-returncode) if returncode < 0 else ""


def _signal_name(number: int) -> str:
    """Return the name of a signal; those for real time have none."""
    return (
        signal.Signals(number).name
        if number in {int(s) for s in signal.Signals}
        else f"signal {number}"
    )
