"""Pools."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import fx

from trtq.export.write_base import (
    dim,
    first_val,
    ints,
    val,
)
from trtq.export.writer import UnsupportedOpError, Writer
from trtq.graph.nodes import operands


class MaxPool(NamedTuple):
    """The arguments of ATen's max pools behind the first."""

    kernel: Any
    stride: Any = ()
    padding: Any = 0
    dilation: Any = 1
    ceil_mode: bool = False


class AvgPool(NamedTuple):
    """Those of its average pools."""

    kernel: Any
    stride: Any = ()
    padding: Any = 0
    ceil_mode: bool = False
    count_include_pad: bool = True
    divisor: Any = None


@dataclass(frozen=True, slots=True)
class _Windows:
    """The windows of a pool, each list by spatial axis."""

    sizes: list[int]
    strides: list[int]
    pads: list[int]
    dilations: list[int]
    ceil_mode: bool

    @classmethod
    def of(cls, x: fx.Node, pool: MaxPool | AvgPool) -> _Windows:
        dims = val(x).ndim - 2
        sizes = ints(pool.kernel, dims)
        strides = ints(pool.stride, dims) if pool.stride not in ((), []) else sizes
        dilations = ints(pool.dilation, dims) if isinstance(pool, MaxPool) else [1] * dims
        return cls(sizes, strides, ints(pool.padding, dims), dilations, pool.ceil_mode)

    def plain_ends(self, have: list[int], count: list[int]) -> list[int] | None:
        """Return the padding behind each axis that gives ``count`` windows without rounding up.

        It is None where rounding up gives as many: torch drops a last window that starts in the
        padding, ONNX before opset 22 may not.
        """
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.sizes, strict=True)]
        rooms = [h + 2 * p - r for h, p, r in zip(have, self.pads, reach, strict=True)]
        rounded = [-(-room // step) + 1 for room, step in zip(rooms, self.strides, strict=True)]
        if rounded == count:
            return None
        axes = zip(count, self.strides, reach, have, self.pads, strict=True)
        return [max((n - 1) * step + r - h - p, 0) for n, step, r, h, p in axes]


def max_pool(w: Writer, n: fx.Node, x: fx.Node, *given: Any, **named: Any) -> Any:
    """Largest value of each window."""
    windows = _Windows.of(x, MaxPool(*given, **named))
    return _pool(w, n, x, "MaxPool", windows, dilations=windows.dilations)


def max_pool_with_indices(w: Writer, n: fx.Node, *args: Any) -> Any:
    """The pooled values; their indices are not written."""
    _require_one_read(n)
    return [max_pool(w, n, *args), None]


def _require_one_read(n: fx.Node) -> None:
    if any(operands(u)[1] == 1 and u.users for u in n.users):
        raise UnsupportedOpError("the places that a pool took its values from")


def avg_pool(w: Writer, n: fx.Node, x: fx.Node, *given: Any, **named: Any) -> Any:
    """Mean of each window."""
    pool = AvgPool(*given, **named)
    padded = any(ints(pool.padding, 1))
    divided = pool.divisor is not None
    if pool.ceil_mode and ((padded and pool.count_include_pad) or divided):
        raise UnsupportedOpError("a mean over windows with a divisor of their own")
    counted = padded and (pool.count_include_pad or divided)
    windows = _Windows.of(x, pool)
    mean = _pool(w, n, x, "AveragePool", windows, count_include_pad=int(counted))
    if not divided:
        return mean
    return w.op("Mul", mean, w.scalar(math.prod(windows.sizes) / pool.divisor, x))


def _require_batch(n: fx.Node, x: fx.Node) -> None:
    """Refuse an image without a batch axis.

    The operand must have two axes more than the spatial axes that the op's name states.
    """
    spatial = next((int(c) for c in str(n.target) if c in "123"), 0)
    if spatial and val(x).ndim != spatial + 2:
        raise UnsupportedOpError("a pool of a tensor without a batch")


def _pool(
    w: Writer, n: fx.Node, x: fx.Node, kind: str, windows: _Windows, **attributes: Any
) -> Any:
    _require_batch(n, x)
    ends = None
    if windows.ceil_mode:
        have = [dim(x, 2 + d) for d in range(len(windows.sizes))]
        ends = windows.plain_ends(have, [int(v) for v in first_val(n).shape[2:]])
    return w.op(
        kind,
        x,
        kernel_shape=windows.sizes,
        strides=windows.strides,
        pads=windows.pads + (windows.pads if ends is None else ends),
        ceil_mode=int(windows.ceil_mode and ends is None),
        **attributes,
    )


def adaptive_avg_pool(w: Writer, n: fx.Node, x: fx.Node, sizes: Any = None) -> Any:
    """The mean of each of a given number of windows."""
    return _adaptive(w, n, x, "AveragePool", "ReduceMean")


def adaptive_max_pool(w: Writer, n: fx.Node, x: fx.Node, sizes: Sequence[int]) -> Any:
    """The largest value of each window; its index is not written."""
    _require_one_read(n)
    return [_adaptive(w, n, x, "MaxPool", "ReduceMax"), None]


def _adaptive(w: Writer, n: fx.Node, x: fx.Node, kind: str, reduction: str) -> Any:
    """Equal windows become one pool; others are written axis by axis."""
    _require_batch(n, x)
    wanted = [int(v) for v in first_val(n).shape[2:]]
    if all(s == 1 for s in wanted):
        return w.op(f"Global{kind}", x)
    have = [dim(x, 2 + d) for d in range(len(wanted))]
    if not any(h % s for h, s in zip(have, wanted, strict=True)):
        windows = [h // s for h, s in zip(have, wanted, strict=True)]
        return w.op(kind, x, kernel_shape=windows, strides=windows)
    result: Any = x
    for d, (size, count) in enumerate(zip(have, wanted, strict=True)):
        edges = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
        result = _reduce_windows(w, result, reduction, 2 + d, edges)
    return result


def _reduce_windows(
    w: Writer, x: Any, kind: str, axis: int, edges: Sequence[tuple[int, int]]
) -> Any:
    """Reduce ranges along one axis to one entry each."""
    parts = [
        w.reduce(kind, w.op("Slice", x, [a], [b], [axis]), [axis], keepdims=True) for a, b in edges
    ]
    return w.op("Concat", *parts, axis=axis)
