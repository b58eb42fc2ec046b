"""Tensors of one value."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import fx

from trtq.export.write_base import Write, val
from trtq.export.writer import Writer
from trtq.graph.dtypes import ONNX_TYPES


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


def arange(w: Writer, n: fx.Node, *args: Any, **ignored: Any) -> Any:
    """Numbers from a start to an end; whole ones are counted as integers and cast."""
    start, end, step = (0, *args, 1) if len(args) == 1 else (*args, 1)[:3]
    bounds = [start, end, step]
    whole = all(isinstance(b, int) or _is_size(b) for b in bounds)
    kind = ONNX_TYPES[val(n).dtype]
    if not whole:
        given = [(b, w.scalar(b, n)) for b in bounds]
        # Engines take scalars only; a size is a vector of one.
        return w.op("Range", *(w.op("Squeeze", s, [0]) if _is_size(b) else s for b, s in given))
    numbers = [
        w.op("Squeeze", b, [0]) if isinstance(b, fx.Node) else np.asarray(b, dtype=np.int64)
        for b in bounds
    ]
    counted = w.op("Range", *numbers)
    return counted if val(n).dtype == torch.int64 else w.op("Cast", counted, to=kind)


def _is_size(bound: Any) -> bool:
    return isinstance(bound, fx.Node) and isinstance(bound.meta.get("val"), torch.SymInt)


zeros = filled(0)
ones = filled(1)
full = filled()
zeros_like = filled(0, like=True)
ones_like = filled(1, like=True)
full_like = filled(like=True)
new_zeros = filled(0, after=1)
new_ones = filled(1, after=1)
new_full = filled(after=1)
