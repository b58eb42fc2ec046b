"""Operators that order values and choose among them."""

from __future__ import annotations

from typing import Any

from torch import fx

from trtq import ops
from trtq.export.write_base import dim
from trtq.export.writer import UnsupportedOpError, Writer


def top_k(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    k: int,
    d: int = -1,
    largest: bool = True,
    ordered: bool = True,
) -> Any:
    """The largest or smallest entries and their indices."""
    return w.op("TopK", x, [k], outputs=2, axis=d, largest=int(largest), sorted=int(ordered))


def sort(w: Writer, n: fx.Node, x: fx.Node, d: int = -1, descending: bool = False) -> Any:
    """All entries along an axis in order, and their original indices."""
    return top_k(w, n, x, dim(x, d), d, largest=descending)


def sort_stable(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    stable: Any = None,
    dim: int = -1,
    descending: bool = False,
) -> Any:
    """Sort; ONNX puts the lower index first where values are equal."""
    return sort(w, n, x, dim, descending)


def argsort(w: Writer, n: fx.Node, *args: Any) -> Any:
    """The original indices of the entries along an axis in order."""
    return sort(w, n, *args)[1]


def argsort_stable(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    stable: Any = True,
    dim: int = -1,
    descending: bool = False,
) -> Any:
    """Like :func:`argsort`, with the order of equal entries kept."""
    return sort(w, n, x, dim, descending)[1]


def arg_extreme(
    w: Writer, n: fx.Node, x: fx.Node, d: int | None = None, keepdim: bool = False
) -> Any:
    """The index of the largest or smallest entry."""
    kind = ops.of(n).onnx_type
    if d is not None:
        return w.op(kind, x, axis=d, keepdims=int(keepdim))
    if keepdim:
        raise UnsupportedOpError("the place in a whole tensor with its axes kept")
    return w.op(kind, w.op("Reshape", x, [-1]), axis=0, keepdims=0)


def extreme(w: Writer, n: fx.Node, x: fx.Node, d: int, keepdim: bool = False) -> Any:
    """The largest or smallest entry along an axis and its index."""
    kind = ops.of(n).onnx_type
    place = w.op(f"Arg{kind}", x, axis=d, keepdims=int(keepdim))
    return [w.reduce(f"Reduce{kind}", x, [d], keepdims=keepdim), place]
