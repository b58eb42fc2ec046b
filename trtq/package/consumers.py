"""The table of consumers: a row and a file each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtq.errors import UsageError, suggest
from trtq.package.consumer import Consumer
from trtq.package.cpp_program import CppProgram
from trtq.package.deepstream import DeepStream
from trtq.package.onnxruntime import OnnxRuntime
from trtq.package.python_program import PythonProgram
from trtq.package.triton import Triton

ROWS: tuple[Consumer, ...] = (
    Triton(),
    DeepStream(),
    OnnxRuntime(),
    PythonProgram(),
    CppProgram(),
)
CONSUMERS: Mapping[str, Consumer] = {row.name: row for row in ROWS}


def find_consumers(names: Sequence[str]) -> list[Consumer]:
    """Return consumers by name, in the order given, each once.

    Raises:
        UsageError: none is named, or one is unknown.
    """
    if not names:
        takes = "; ".join(f"{c.name} takes {c.takes}" for c in ROWS)
        raise UsageError("trtq package needs --for", takes, "Add --for triton")
    unknown = next((n for n in names if n not in CONSUMERS), None)
    if unknown is not None:
        raise UsageError(
            f"Cannot use --for {unknown}",
            f"known are {', '.join(CONSUMERS)}",
            suggest(unknown, CONSUMERS),
        )
    return [CONSUMERS[n] for n in dict.fromkeys(names)]
