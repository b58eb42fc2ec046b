"""Operators that move, choose and join values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import guard_or_false

from trtq.export.write_base import FAR, converted, dim, ints, same, static, val
from trtq.export.writer import UnsupportedOpError, Writer

EQUAL_PARTS_OPSET = 18  # the first whose Split is told how many parts
IMAGE_RANK = 4  # of what DepthToSpace takes


def sym_size(w: Writer, n: fx.Node, x: fx.Node, d: int) -> Any:
    """One size of a tensor as a vector of one."""
    return w.op("Gather", w.op("Shape", x), [d], axis=0)


def reshape(w: Writer, n: fx.Node, x: fx.Node, sizes: Sequence[Any]) -> Any:
    """Give another shape; one open size is written as -1 and needs no arithmetic at run time."""
    sizes = list(sizes)
    if -1 not in sizes and sum(isinstance(s, fx.Node) for s in sizes) == 1:
        sizes = [-1 if isinstance(s, fx.Node) else s for s in sizes]
    return w.op("Reshape", x, sizes)


def expand(w: Writer, n: fx.Node, x: fx.Node, sizes: Sequence[Any], implicit: bool = False) -> Any:
    """Repeat sizes of 1; a size that remains is written as 1."""
    have, want = list[Any](val(x).shape), list[Any](val(n).shape)
    have = [None] * (len(want) - len(have)) + have
    keep = [
        (isinstance(s, int) and s == -1) or (h is not None and same(h, v))
        for s, h, v in zip(sizes, have, want, strict=True)
    ]
    return w.op("Expand", x, [1 if k else s for k, s in zip(keep, sizes, strict=True)])


def permute(w: Writer, n: fx.Node, x: fx.Node, dims: Sequence[int]) -> Any:
    """Reorder the axes."""
    return w.op("Transpose", x, perm=[d % len(dims) for d in dims])


def transpose(w: Writer, n: fx.Node, x: fx.Node, a: int = 0, b: int = 1) -> Any:
    """Swap two axes."""
    order = list(range(val(x).ndim))
    order[a], order[b] = order[b], order[a]
    return w.op("Transpose", x, perm=order)


def unsqueeze(w: Writer, n: fx.Node, x: fx.Node, d: int) -> Any:
    """Insert an axis."""
    return w.op("Unsqueeze", x, [d])


def squeeze(w: Writer, n: fx.Node, x: fx.Node, dims: int | Sequence[int]) -> Any:
    """Drop axes of size 1, also open ones that the graph holds at 1; torch leaves others alone."""
    given = [dims] if isinstance(dims, int) else list(dims)
    ones = [d for d in given if guard_or_false(val(x).shape[d] == 1)]
    return w.op("Squeeze", x, ones) if ones else w.op("Identity", x)


def cut(
    w: Writer, n: fx.Node, x: fx.Node, d: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    """A range along one axis."""
    ends = [FAR if end is None or (isinstance(end, int) and end > FAR) else end]
    return w.op("Slice", x, [0 if start is None else start], ends, [d], [step])


def select(w: Writer, n: fx.Node, x: fx.Node, d: int, index: Any) -> Any:
    """Take one entry along an axis, which is removed."""
    if not isinstance(index, int):
        raise UnsupportedOpError("an index that is computed")
    return w.op("Gather", x, np.asarray(index, dtype=np.int64), axis=d)


def split(w: Writer, n: fx.Node, x: fx.Node, sizes: int | Sequence[Any], d: int = 0) -> Any:
    """Parts along an axis: of given sizes, of one size, or a number of equal parts (chunk)."""
    parts: Sequence[torch.Tensor] = n.meta["val"]
    if len(parts) == 1:
        return [w.op("Identity", x)]
    if isinstance(sizes, int):
        sizes = [part.shape[d] for part in parts]
    if all(isinstance(size, int) for size in sizes):
        return w.op("Split", x, static(sizes), outputs=len(parts), axis=d)
    if n.target is torch.ops.aten.chunk.default:  # of an open axis
        equal = {"num_outputs": len(parts)} if w.opset >= EQUAL_PARTS_OPSET else {}
        return w.op("Split", x, outputs=len(parts), axis=d, **equal)
    raise UnsupportedOpError("parts of an open axis that are not equal")


def getitem(w: Writer, n: fx.Node, x: fx.Node, index: int) -> Any:
    """One of several results."""
    return w.values[x][index]


def roll(
    w: Writer, n: fx.Node, x: fx.Node, shifts: int | Sequence[int], dims: int | Sequence[int] = ()
) -> Any:
    """Shift along axes with wrap-around."""
    shifts, dims = ints(shifts, 1), ints(dims, 1)
    if not dims:
        raise UnsupportedOpError("roll over the flattened tensor")
    value: Any = x
    for shift, d in zip(shifts, dims, strict=True):
        cut_at = -shift % dim(x, d)
        tail = w.op("Slice", value, [cut_at], [FAR], [d])
        value = w.op("Concat", tail, w.op("Slice", value, [0], [cut_at], [d]), axis=d)
    return value


def flip(w: Writer, n: fx.Node, x: fx.Node, dims: Sequence[int]) -> Any:
    """Reverse axes."""
    count = len(dims)
    return w.op("Slice", x, [-1] * count, [-FAR] * count, list(dims), [-1] * count)


def repeat(w: Writer, n: fx.Node, x: fx.Node, times: Sequence[Any]) -> Any:
    """Tile, after putting axes in front where more are asked than there are."""
    extra = len(times) - val(x).ndim
    return w.op("Tile", w.op("Unsqueeze", x, list(range(extra))) if extra else x, list(times))


def stack(w: Writer, n: fx.Node, tensors: Sequence[fx.Node], d: int = 0) -> Any:
    """Concatenate along a new axis."""
    parts = (converted(w, n, t) for t in tensors)
    return w.op("Concat", *(w.op("Unsqueeze", t, [d]) for t in parts), axis=d)


def index(w: Writer, n: fx.Node, x: fx.Node, indices: Sequence[Any]) -> Any:
    """Take entries along one axis by a tensor of integers."""
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(given) != 1 or val(given[0][1]).dtype == torch.bool:
        raise UnsupportedOpError("indexing by several tensors or by a mask")
    return w.op("Gather", x, given[0][1], axis=given[0][0])


def pad(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    amounts: Sequence[int],
    mode: Any = "constant",
    value: Any = None,
) -> Any:
    """Pad a tensor.

    Amounts start at the last axis in torch and at the first in ONNX. ``constant_pad_nd`` gives its
    value in place of a mode.
    """
    if not isinstance(mode, str):
        mode, value = "constant", mode
    if mode == "circular":
        return circular_pad(w, n, x, static(amounts))
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    rank, pairs = val(x).ndim, static(amounts)
    begins, ends = list[int]([0] * rank), list[int]([0] * rank)
    for i in range(len(pairs) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = pairs[2 * i], pairs[2 * i + 1]
    return w.op("Pad", x, begins + ends, w.scalar(value or 0, x), mode=kinds[mode])


def circular_pad(w: Writer, n: fx.Node, x: fx.Node, amounts: Sequence[int]) -> Any:
    """Pad with wrap-around: each end of an axis continues at the other."""
    value: Any = x
    for i in range(len(amounts) // 2):
        before, after = amounts[2 * i : 2 * i + 2]
        if min(before, after) < 0:
            raise UnsupportedOpError("a circular pad that cuts")
        axis = val(x).ndim - 1 - i
        head = [w.op("Slice", value, [-before], [FAR], [axis])] if before else []
        tail = [w.op("Slice", value, [0], [after], [axis])] if after else []
        value = w.op("Concat", *head, value, *tail, axis=axis) if head or tail else value
    return value


def pixel_shuffle(w: Writer, n: fx.Node, x: fx.Node, factor: int) -> Any:
    """Channels become pixels."""
    if val(x).ndim != IMAGE_RANK:
        raise UnsupportedOpError(f"a pixel shuffle of {val(x).ndim} axes")
    return w.op("DepthToSpace", x, blocksize=factor, mode="CRD")


def expand_as(w: Writer, n: fx.Node, x: fx.Node, like: fx.Node) -> Any:
    """Repeat sizes of 1 as another tensor has them."""
    return w.op("Expand", x, w.op("Shape", like))


def cat(w: Writer, n: fx.Node, tensors: Sequence[fx.Node], d: int = 0) -> Any:
    """Join along an axis."""
    return w.op("Concat", *(converted(w, n, t) for t in tensors), axis=d)


def index_select(w: Writer, n: fx.Node, x: fx.Node, d: int, i: fx.Node) -> Any:
    """Take entries along an axis."""
    return w.op("Gather", x, i, axis=d)


def embedding(w: Writer, n: fx.Node, table: fx.Node, i: fx.Node, *ignored: Any) -> Any:
    """Take rows of a table; what is ignored matters in training only."""
    return w.op("Gather", table, i, axis=0)
