"""Shared parts of the functions that write operators as ONNX, and how one is looked up.

A function takes the writer, the FX node and the call's arguments, and returns the name of the
result (or names). Forms are chosen by the writer's opset, so that one graph can be written for
every TensorRT from 8.0 on. An argument that a form does not take raises
:class:`UnsupportedOpError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from trtq import ops
from trtq.export.writer import UnsupportedOpError, Writer
from trtq.graph.dtypes import ONNX_TYPES

Write = Callable[..., Any]
FAR = 2**62  # torch writes "to the end" as the largest int64


def writer_of(node: fx.Node) -> Write | None:
    """Return the function that writes a call, None where the table of operators names none."""
    name = ops.as_written(node).write
    return ops.row_function(name, "trtq.export.write_") if name else None


def val(node: fx.Node) -> torch.Tensor:
    """Return the example value of a node that gives one tensor."""
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)
    return value


def first_val(node: fx.Node) -> torch.Tensor:
    """Return the example value of a node's only or first result."""
    value = node.meta["val"]
    return value if isinstance(value, torch.Tensor) else value[0]


def require_same_type(n: fx.Node, *operands: fx.Node) -> None:
    """Refuse a call that also converts.

    Args:
        n: the call.
        operands: must have the dtype of its result.

    Raises:
        UnsupportedOpError: one has another.
    """
    if any(val(x).dtype != val(n).dtype for x in operands):
        raise UnsupportedOpError("a result of another type than its operand")


def converted(w: Writer, n: fx.Node, x: Any) -> Any:
    """Return an operand in the type of the result, which torch converts to and ONNX does not.

    A number becomes a scalar of that type.
    """
    value, kind = x.meta.get("val") if isinstance(x, fx.Node) else None, val(n).dtype
    if not isinstance(value, torch.Tensor):
        return w.scalar(x, n)
    return x if value.dtype == kind else w.op("Cast", x, to=ONNX_TYPES[kind])


def ints(value: int | Sequence[int], count: int) -> list[int]:
    """Return a number or a list of numbers as a list of ``count``; one number counts for all."""
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def static(sizes: Sequence[Any]) -> list[int]:
    """Return sizes as plain numbers.

    Raises:
        UnsupportedOpError: one of them is known only at run time.
    """
    if not all(isinstance(s, int) for s in sizes):
        raise UnsupportedOpError("a size that is not known before the run")
    return [int(s) for s in sizes]


def dim(node: fx.Node, d: int) -> int:
    """Return the static size of one dimension, negative ones from the end.

    Raises:
        UnsupportedOpError: it is known only at run time.
    """
    return static([val(node).shape[d]])[0]


def is_natural(size: Any) -> bool:
    """Whether a size is at least 0 for every input of the model."""
    value = size.meta["val"] if isinstance(size, fx.Node) else size
    if not isinstance(value, torch.SymInt):
        return bool(value >= 0)
    node = value.node
    return node.shape_env is not None and bool(node.shape_env.bound_sympy(node.expr).lower >= 0)


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal for every batch."""
    return str(a) == str(b)
