"""Tensors of one value."""

from __future__ import annotations

from typing import Any

from torch import fx

from trtq.export.write_base import Write
from trtq.export.writer import Writer


def filled(value: Any = None, *, like: bool = False, after: int = 0) -> Write:
    """Return a writer for a tensor of one value.

    Args:
        value: None where the call gives it behind the sizes.
        like: the sizes are those of the first operand.
        after: how many operands come before the sizes.
    """

    def write(w: Writer, n: fx.Node, *args: Any, **ignored: Any) -> Any:
        sizes = w.op("Shape", args[0]) if like else list(args[after])
        given = args[after + 1] if value is None else value
        return w.op("Expand", w.scalar(given, n), sizes)

    return write


zeros = filled(0)
ones = filled(1)
full = filled()
zeros_like = filled(0, like=True)
ones_like = filled(1, like=True)
full_like = filled(like=True)
new_zeros = filled(0, after=1)
new_ones = filled(1, after=1)
new_full = filled(after=1)
