"""Reductions, softmax and normalisations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import fx

from trtq import ops
from trtq.export.write_base import dim, ints, require_same_type, static, val
from trtq.export.writer import UnsupportedOpError, Writer


def reduction(
    w: Writer, n: fx.Node, x: fx.Node, dims: Any = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    """A reduction over axes, over all without any."""
    whole = dims is None or (isinstance(dims, (list, tuple)) and not dims)
    require_same_type(n, x)
    axes = None if whole else ints(dims, 1)
    return w.reduce(ops.of(n).onnx_type, x, axes, keepdims=keepdim)


def vector_norm(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    ord: Any = 2,
    dims: Any = None,
    keepdim: bool = False,
    dtype: Any = None,
) -> Any:
    """The 1 or 2 norm over axes."""
    require_same_type(n, x)
    return w.reduce(
        {1: "ReduceL1", 2: "ReduceL2"}[ord],
        x,
        None if dims is None else ints(dims, 1),
        keepdims=keepdim,
    )


def variance(
    w: Writer, n: fx.Node, x: fx.Node, dims: Any = None, correction: Any = 1, keepdim: bool = False
) -> Any:
    """Mean square distance from the mean."""
    axes = ints(dims, 1) if dims not in (None, [], ()) else list(range(val(x).ndim))
    count = math.prod(dim(x, d) for d in axes)
    centred = w.op("Sub", x, w.reduce("ReduceMean", x, axes, keepdims=True))
    mean = w.reduce("ReduceMean", w.op("Mul", centred, centred), axes, keepdims=keepdim)
    return w.op(
        "Mul", mean, w.scalar(count / (count - (1 if correction is None else correction)), x)
    )


def variance_unbiased(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    dims: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
) -> Any:
    """The variance, its correction given as a yes or no."""
    return variance(w, n, x, dims, int(unbiased), keepdim)


def deviation(
    w: Writer, n: fx.Node, x: fx.Node, dims: Any = None, correction: Any = 1, keepdim: bool = False
) -> Any:
    """Square root of the variance."""
    return w.op("Sqrt", variance(w, n, x, dims, correction, keepdim))


def deviation_unbiased(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    dims: Any = None,
    unbiased: bool = True,
    keepdim: bool = False,
) -> Any:
    """The standard deviation, its correction given as a yes or no."""
    return deviation(w, n, x, dims, int(unbiased), keepdim)


def cumsum(w: Writer, n: fx.Node, x: fx.Node, d: int, dtype: Any = None) -> Any:
    """Running sum along an axis."""
    require_same_type(n, x)
    if not val(x).ndim:
        raise UnsupportedOpError("a running sum of a scalar")
    return w.op("CumSum", x, np.asarray(d, dtype=np.int64))


def softmax(w: Writer, n: fx.Node, x: fx.Node, d: int, dtype: Any = None) -> Any:
    """Softmax or its logarithm."""
    require_same_type(n, x)
    return w.op(ops.of(n).onnx_type, x, axis=d)


def layer_norm(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Any:
    """LayerNormalization from opset 17 on; before, its formula."""
    axes = list(range(-len(shape), 0))
    if w.opset >= 17:
        ones = torch.ones(static(shape), dtype=val(x).dtype).numpy() if weight is None else weight
        return w.op(
            "LayerNormalization",
            x,
            ones,
            *([] if bias is None else [bias]),
            axis=-len(shape),
            epsilon=eps,
        )
    centred = w.op("Sub", x, w.reduce("ReduceMean", x, axes, keepdims=True))
    mean = w.reduce("ReduceMean", w.op("Mul", centred, centred), axes, keepdims=True)
    value = w.op("Div", centred, w.op("Sqrt", w.op("Add", mean, w.scalar(eps, x))))
    value = value if weight is None else w.op("Mul", value, weight)
    return value if bias is None else w.op("Add", value, bias)


def group_norm(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Any:
    """Group normalisation as InstanceNormalization of the groups.

    ONNX's own GroupNormalization changed its meaning between opsets 18 and 21.
    """
    channels, rank = dim(x, 1), val(x).ndim
    ones, zeros = (torch.full((groups,), v, dtype=val(x).dtype).numpy() for v in (1, 0))
    flat = w.op(
        "InstanceNormalization", w.op("Reshape", x, [0, groups, -1]), ones, zeros, epsilon=eps
    )
    value = w.op("Reshape", flat, [-1, channels, *static(val(x).shape[2:])])
    spread = list(range(1, rank - 1))
    value = value if weight is None else w.op("Mul", value, w.op("Unsqueeze", weight, spread))
    return value if bias is None else w.op("Add", value, w.op("Unsqueeze", bias, spread))


class _Instance(NamedTuple):
    """The arguments of ATen's instance norm behind its constants."""

    mean: Any
    var: Any
    measured: bool
    momentum: float
    eps: float
    cudnn: bool


def instance_norm(w: Writer, n: fx.Node, x: fx.Node, weight: Any, bias: Any, *given: Any) -> Any:
    """Normalise each channel of each image by its own mean and variance."""
    settings = _Instance(*given)
    if not settings.measured:
        raise UnsupportedOpError("an instance norm with running statistics")
    if val(x).dtype != torch.float32:
        raise UnsupportedOpError("an instance norm of another type than float32")
    ones, zeros = (np.full(dim(x, 1), v, dtype=np.float32) for v in (1, 0))
    return w.op(
        "InstanceNormalization",
        x,
        ones if weight is None else weight,
        zeros if bias is None else bias,
        epsilon=settings.eps,
    )
