"""How each ATen op is written as ONNX: one table, with a short function or one line per op.

A function takes the writer, the FX node and the call's arguments, and returns the name of the
result (or names). Forms are chosen by the writer's opset, so that one graph can be written for
every TensorRT from 8.0 on. An op or argument that is not here raises :class:`UnsupportedOpError`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from trtq.export.recurrent import recurrent
from trtq.export.writer import ONNX_TYPES, UnsupportedOpError, Writer
from trtq.graph.normalize import PADS, operands

aten = torch.ops.aten
Write = Callable[..., Any]
FAR = 2**62  # torch writes "to the end" as the largest int64


def _val(node: fx.Node) -> torch.Tensor:
    value = node.meta["val"]
    assert isinstance(value, torch.Tensor)
    return value


def _require_same_type(n: fx.Node, x: fx.Node) -> None:
    if _val(n).dtype != _val(x).dtype:
        raise UnsupportedOpError("a result of another type than its operand")


def _ints(value: int | Sequence[int], count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _static(sizes: Sequence[Any]) -> list[int]:
    if not all(isinstance(s, int) for s in sizes):
        raise UnsupportedOpError("a size that is not known before the run")
    return [int(s) for s in sizes]


def _dim(node: fx.Node, d: int) -> int:
    """Return the static size of one dimension."""
    return _static([_val(node).shape[d]])[0]


# ---- elementwise ---------------------------------------------------------------------------------


def unary(kind: str, **attributes: Any) -> Write:
    """Return a writer for an op of one operand."""
    return lambda w, n, x: w.op(kind, x, **attributes)


def _binary(kind: str) -> Write:
    def write(
        w: Writer, n: fx.Node, a: Any, b: Any, alpha: Any = 1, rounding_mode: Any = None
    ) -> Any:
        if not isinstance(n.meta.get("val"), torch.Tensor):  # arithmetic on sizes
            return w.op(kind, *(v if isinstance(v, fx.Node) else [v] for v in (a, b)))
        if rounding_mode is not None and (
            rounding_mode != "floor" or not _val(n).dtype.is_floating_point
        ):
            raise UnsupportedOpError("division with rounding")
        like = _operand_like(n, a, b)
        right = w.scalar(b, like)
        if alpha != 1:
            right = w.op("Mul", right, w.scalar(alpha, like))
        result = w.op(kind, w.scalar(a, like), right)
        return result if rounding_mode is None else w.op("Floor", result)

    return write


def floor_divide(w: Writer, n: fx.Node, a: Any, b: Any, rounding_mode: Any = "floor") -> Any:
    """Divide and round down; ONNX's division of integers rounds towards zero."""
    if not _val(n).dtype.is_floating_point:
        raise UnsupportedOpError("a division of integers")
    return _binary("Div")(w, n, a, b, rounding_mode=rounding_mode)


def not_equal(w: Writer, n: fx.Node, a: Any, b: Any) -> Any:
    """Compare for inequality; ONNX has the opposite."""
    return w.op("Not", _binary("Equal")(w, n, a, b))


def logical(kind: str) -> Write:
    """Return a writer for a bitwise op, which on booleans is the logical one."""

    def write(w: Writer, n: fx.Node, a: fx.Node, b: fx.Node) -> Any:
        if _val(a).dtype != torch.bool or _val(b).dtype != torch.bool:
            raise UnsupportedOpError("bits of integers")
        return w.op(kind, a, b)

    return write


def _operand_like(n: fx.Node, *operands: Any) -> fx.Node:
    """Return a node of the type that the operands are computed in.

    This is the result, or a tensor operand for comparisons.
    """
    if _val(n).dtype != torch.bool:
        tensors = [
            o
            for o in operands
            if isinstance(o, fx.Node) and isinstance(o.meta.get("val"), torch.Tensor)
        ]
        if any(_val(t).dtype != _val(n).dtype for t in tensors):
            raise UnsupportedOpError("operands of different types")
        return n
    tensors = [
        o
        for o in operands
        if isinstance(o, fx.Node) and isinstance(o.meta.get("val"), torch.Tensor)
    ]
    if len({_val(t).dtype for t in tensors}) > 1:
        raise UnsupportedOpError("a comparison of different types")
    return tensors[0]


def _swapped(write: Write) -> Write:
    return lambda w, n, a, b, *rest: write(w, n, b, a, *rest)


def clamp(w: Writer, n: fx.Node, x: fx.Node, low: Any = None, high: Any = None) -> Any:
    """Clip; either bound may be missing."""
    return w.op(
        "Clip",
        x,
        None if low is None else w.scalar(low, x),
        None if high is None else w.scalar(high, x),
    )


def gelu(w: Writer, n: fx.Node, x: fx.Node, approximate: str = "none") -> Any:
    """Gelu from opset 20 on; before, its formula."""
    if w.opset >= 20:
        return w.op("Gelu", x, approximate=approximate)
    if approximate == "tanh":
        cube = w.op("Mul", w.op("Mul", x, x), x)
        inner = w.op(
            "Mul",
            w.op("Add", x, w.op("Mul", cube, w.scalar(0.044715, x))),
            w.scalar(math.sqrt(2.0 / math.pi), x),
        )
        gate = w.op("Add", w.op("Tanh", inner), w.scalar(1.0, x))
    else:
        gate = w.op(
            "Add", w.op("Erf", w.op("Mul", x, w.scalar(math.sqrt(0.5), x))), w.scalar(1.0, x)
        )
    return w.op("Mul", w.op("Mul", x, gate), w.scalar(0.5, x))


def hardswish(w: Writer, n: fx.Node, x: fx.Node) -> Any:
    """Hardswish: x * hardsigmoid(x)."""
    return w.op("HardSwish", x) if w.opset >= 14 else w.op("Mul", x, hardsigmoid(w, n, x))


def hardsigmoid(w: Writer, n: fx.Node, x: fx.Node) -> Any:
    """clip(x / 6 + 1/2, 0, 1)."""
    return w.op("HardSigmoid", x, alpha=1.0 / 6.0, beta=0.5)


def mish(w: Writer, n: fx.Node, x: fx.Node) -> Any:
    """Mish: x * tanh(softplus(x))."""
    return w.op("Mul", x, w.op("Tanh", w.op("Softplus", x)))


def softplus(w: Writer, n: fx.Node, x: fx.Node, beta: float = 1, threshold: float = 20) -> Any:
    """log(1 + e^x); torch's threshold is its own way around overflow."""
    if beta != 1:
        raise UnsupportedOpError("softplus with beta")
    return w.op("Softplus", x)


def glu(w: Writer, n: fx.Node, x: fx.Node, dim: int = -1) -> Any:
    """First half times the sigmoid of the second."""
    half = _dim(x, dim) // 2
    a, b = w.op("Split", x, [half, half], outputs=2, axis=dim)
    return w.op("Mul", a, w.op("Sigmoid", b))


def addcmul(w: Writer, n: fx.Node, x: fx.Node, a: fx.Node, b: fx.Node, value: Any = 1) -> Any:
    """Add value * a * b to x."""
    product = w.op("Mul", a, b)
    return w.op("Add", x, product if value == 1 else w.op("Mul", product, w.scalar(value, x)))


def cast(w: Writer, n: fx.Node, x: fx.Node, *ignored: Any, **more: Any) -> Any:
    """Convert to the type of the result."""
    return w.op("Cast", x, to=ONNX_TYPES[_val(n).dtype])


def where(w: Writer, n: fx.Node, condition: fx.Node, a: Any, b: Any) -> Any:
    """Choose by a mask; either side may be a number."""
    return w.op("Where", condition, w.scalar(a, n), w.scalar(b, n))


def masked_fill(w: Writer, n: fx.Node, x: fx.Node, mask: fx.Node, value: Any) -> Any:
    """Put ``value`` where the mask is true."""
    return w.op("Where", mask, w.scalar(value, x), x)


# ---- shapes --------------------------------------------------------------------------------------


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
    """Repeat sizes of 1; a size that stays is written as 1."""
    have, want = list[Any](_val(x).shape), list[Any](_val(n).shape)
    have = [None] * (len(want) - len(have)) + have
    keep = [
        (isinstance(s, int) and s == -1) or (h is not None and _same(h, v))
        for s, h, v in zip(sizes, have, want, strict=True)
    ]
    return w.op("Expand", x, [1 if k else s for k, s in zip(keep, sizes, strict=True)])


def _same(a: Any, b: Any) -> bool:
    return str(a) == str(b)


def permute(w: Writer, n: fx.Node, x: fx.Node, dims: Sequence[int]) -> Any:
    """Reorder the axes."""
    return w.op("Transpose", x, perm=[d % len(dims) for d in dims])


def transpose(w: Writer, n: fx.Node, x: fx.Node, a: int = 0, b: int = 1) -> Any:
    """Swap two axes."""
    order = list(range(_val(x).ndim))
    order[a], order[b] = order[b], order[a]
    return w.op("Transpose", x, perm=order)


def unsqueeze(w: Writer, n: fx.Node, x: fx.Node, d: int) -> Any:
    """Insert an axis."""
    return w.op("Unsqueeze", x, [d])


def squeeze(w: Writer, n: fx.Node, x: fx.Node, dims: int | Sequence[int]) -> Any:
    """Drop axes of size 1; torch leaves others alone."""
    given = [dims] if isinstance(dims, int) else list(dims)
    ones = [d for d in given if _same(_val(x).shape[d], 1)]
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


def split(w: Writer, n: fx.Node, x: fx.Node, sizes: Sequence[Any], d: int = 0) -> Any:
    """Parts of given sizes along an axis."""
    parts = _static(sizes)
    return (
        [w.op("Identity", x)]
        if len(parts) == 1
        else w.op("Split", x, parts, outputs=len(parts), axis=d)
    )


def getitem(w: Writer, n: fx.Node, x: fx.Node, index: int) -> Any:
    """One of several results."""
    return w.values[x][index]


def roll(
    w: Writer, n: fx.Node, x: fx.Node, shifts: int | Sequence[int], dims: int | Sequence[int] = ()
) -> Any:
    """Shift along axes with wrap-around."""
    shifts, dims = _ints(shifts, 1), _ints(dims, 1)
    if not dims:
        raise UnsupportedOpError("roll over the flattened tensor")
    value: Any = x
    for shift, d in zip(shifts, dims, strict=True):
        cut_at = -shift % _dim(x, d)
        tail = w.op("Slice", value, [cut_at], [FAR], [d])
        value = w.op("Concat", tail, w.op("Slice", value, [0], [cut_at], [d]), axis=d)
    return value


def flip(w: Writer, n: fx.Node, x: fx.Node, dims: Sequence[int]) -> Any:
    """Reverse axes."""
    count = len(dims)
    return w.op("Slice", x, [-1] * count, [-FAR] * count, list(dims), [-1] * count)


def repeat(w: Writer, n: fx.Node, x: fx.Node, times: Sequence[Any]) -> Any:
    """Tile, after putting axes in front where more are asked than there are."""
    extra = len(times) - _val(x).ndim
    return w.op("Tile", w.op("Unsqueeze", x, list(range(extra))) if extra else x, list(times))


def stack(w: Writer, n: fx.Node, tensors: Sequence[fx.Node], d: int = 0) -> Any:
    """Concatenate along a new axis."""
    return w.op("Concat", *(w.op("Unsqueeze", t, [d]) for t in tensors), axis=d)


def index(w: Writer, n: fx.Node, x: fx.Node, indices: Sequence[Any]) -> Any:
    """Take entries along one axis by a tensor of integers."""
    given = [(d, i) for d, i in enumerate(indices) if i is not None]
    if len(given) != 1 or _val(given[0][1]).dtype == torch.bool:
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
        return circular_pad(w, n, x, _static(amounts))
    kinds = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
    rank, pairs = _val(x).ndim, _static(amounts)
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
        axis = _val(x).ndim - 1 - i
        head = [w.op("Slice", value, [-before], [FAR], [axis])] if before else []
        tail = [w.op("Slice", value, [0], [after], [axis])] if after else []
        value = w.op("Concat", *head, value, *tail, axis=axis) if head or tail else value
    return value


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
    return top_k(w, n, x, _dim(x, d), d, largest=descending)


def arg_extreme(kind: str) -> Write:
    """Return a writer for the index of the largest or smallest entry."""

    def write(
        w: Writer, n: fx.Node, x: fx.Node, d: int | None = None, keepdim: bool = False
    ) -> Any:
        if d is not None:
            return w.op(kind, x, axis=d, keepdims=int(keepdim))
        if keepdim:
            raise UnsupportedOpError("the place in a whole tensor with its axes kept")
        return w.op(kind, w.op("Reshape", x, [-1]), axis=0, keepdims=0)

    return write


def extreme(kind: str) -> Write:
    """Return a writer for the largest or smallest entry along an axis and its index."""

    def write(w: Writer, n: fx.Node, x: fx.Node, d: int, keepdim: bool = False) -> Any:
        place = w.op(f"Arg{kind}", x, axis=d, keepdims=int(keepdim))
        return [w.reduce(f"Reduce{kind}", x, [d], keepdims=keepdim), place]

    return write


def cumsum(w: Writer, n: fx.Node, x: fx.Node, d: int, dtype: Any = None) -> Any:
    """Running sum along an axis."""
    _require_same_type(n, x)
    if not _val(x).ndim:
        raise UnsupportedOpError("a running sum of a scalar")
    return w.op("CumSum", x, np.asarray(d, dtype=np.int64))


# ---- reductions, matmuls, norms ------------------------------------------------------------------


def reduction(kind: str) -> Write:
    """Return a writer for a reduction over axes."""

    def write(
        w: Writer,
        n: fx.Node,
        x: fx.Node,
        dims: Any = None,
        keepdim: bool = False,
        dtype: Any = None,
    ) -> Any:
        axes = (
            None
            if dims is None or (isinstance(dims, (list, tuple)) and not dims)
            else _ints(dims, 1)
        )
        _require_same_type(n, x)
        return w.reduce(kind, x, axes, keepdims=keepdim)

    return write


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
    _require_same_type(n, x)
    return w.reduce(
        {1: "ReduceL1", 2: "ReduceL2"}[ord],
        x,
        None if dims is None else _ints(dims, 1),
        keepdims=keepdim,
    )


def variance(
    w: Writer, n: fx.Node, x: fx.Node, dims: Any = None, correction: Any = 1, keepdim: bool = False
) -> Any:
    """Mean square distance from the mean."""
    axes = _ints(dims, 1) if dims not in (None, [], ()) else list(range(_val(x).ndim))
    count = math.prod(_dim(x, d) for d in axes)
    centred = w.op("Sub", x, w.reduce("ReduceMean", x, axes, keepdims=True))
    mean = w.reduce("ReduceMean", w.op("Mul", centred, centred), axes, keepdims=keepdim)
    return w.op(
        "Mul", mean, w.scalar(count / (count - (1 if correction is None else correction)), x)
    )


def deviation(
    w: Writer, n: fx.Node, x: fx.Node, dims: Any = None, correction: Any = 1, keepdim: bool = False
) -> Any:
    """Square root of the variance."""
    return w.op("Sqrt", variance(w, n, x, dims, correction, keepdim))


def baddbmm(
    w: Writer, n: fx.Node, bias: fx.Node, a: fx.Node, b: fx.Node, beta: Any = 1, alpha: Any = 1
) -> Any:
    """Beta * bias + alpha * a @ b."""
    product = w.op("MatMul", a, b)
    product = product if alpha == 1 else w.op("Mul", product, w.scalar(alpha, n))
    if beta == 0:
        return product
    return w.op("Add", product, bias if beta == 1 else w.op("Mul", bias, w.scalar(beta, n)))


def einsum(
    w: Writer, n: fx.Node, equation: str, tensors: Sequence[fx.Node], path: Any = None
) -> Any:
    """ONNX has it under the same name."""
    return w.op("Einsum", *tensors, equation=equation)


def softmax(kind: str) -> Write:
    """Return a writer for softmax or its logarithm."""

    def write(w: Writer, n: fx.Node, x: fx.Node, d: int, dtype: Any = None) -> Any:
        _require_same_type(n, x)
        return w.op(kind, x, axis=d)

    return write


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
        ones = w.constant(np.ones(_static(shape), dtype=np.float32)) if weight is None else weight
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
    channels, rank = _dim(x, 1), _val(x).ndim
    ones, zeros = np.ones(groups, dtype=np.float32), np.zeros(groups, dtype=np.float32)
    flat = w.op(
        "InstanceNormalization", w.op("Reshape", x, [0, groups, -1]), ones, zeros, epsilon=eps
    )
    value = w.op("Reshape", flat, [-1, channels, *_static(_val(x).shape[2:])])
    spread = list(range(1, rank - 1))
    value = value if weight is None else w.op("Mul", value, w.op("Unsqueeze", weight, spread))
    return value if bias is None else w.op("Add", value, w.op("Unsqueeze", bias, spread))


def instance_norm(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    measured: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Any:
    """Normalise each channel of each image by its own mean and variance."""
    if not measured:
        raise UnsupportedOpError("an instance norm with running statistics")
    if _val(x).dtype != torch.float32:
        raise UnsupportedOpError("an instance norm of another type than float32")
    ones, zeros = (np.full(_dim(x, 1), v, dtype=np.float32) for v in (1, 0))
    return w.op(
        "InstanceNormalization",
        x,
        ones if weight is None else weight,
        zeros if bias is None else bias,
        epsilon=eps,
    )


# ---- convolutions, pools, resampling -------------------------------------------------------------


def conv(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """A convolution with any number of spatial axes.

    A pad with zeros before it becomes its own padding, each side separately.
    """
    dims = _val(weight).ndim - 2
    x, begins, ends = _absorb_pad(x, _ints(padding, dims))
    return w.op(
        "Conv",
        x,
        weight,
        *([] if bias is None else [bias]),
        strides=_ints(stride, dims),
        pads=begins + ends,
        dilations=_ints(dilation, dims),
        group=groups,
        kernel_shape=[int(k) for k in _val(weight).shape[2:]],
    )


def _absorb_pad(x: fx.Node, padding: list[int]) -> tuple[fx.Node, list[int], list[int]]:
    if x.target not in PADS:
        return x, padding, padding
    source, amounts, mode, value = (
        [*operands(x), "constant", None][:4] if len(operands(x)) != 3 else [*operands(x), None]
    )
    flat = [*_static(amounts), *[0] * (2 * _val(x).ndim - len(amounts))]
    spatial = len(padding)
    if (
        mode not in ("constant", 0, 0.0)
        or value not in (None, 0, 0.0)
        or any(flat[2 * spatial :])
        or min(flat) < 0
    ):
        return x, padding, padding
    pairs = [flat[2 * (spatial - 1 - d) : 2 * (spatial - d)] for d in range(spatial)]
    return (
        source,
        [p + a for p, (a, _) in zip(padding, pairs, strict=True)],
        [p + b for p, (_, b) in zip(padding, pairs, strict=True)],
    )


def conv_transpose(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """A transposed convolution."""
    dims = _val(weight).ndim - 2
    return w.op(
        "ConvTranspose",
        x,
        weight,
        *([] if bias is None else [bias]),
        strides=_ints(stride, dims),
        pads=_ints(padding, dims) * 2,
        output_padding=_ints(output_padding, dims),
        dilations=_ints(dilation, dims),
        group=groups,
        kernel_shape=[int(k) for k in _val(weight).shape[2:]],
    )


def convolution(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    weight: fx.Node,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    """The general form the two above are special cases of."""
    if transposed:
        return conv_transpose(
            w, n, x, weight, bias, stride, padding, output_padding, groups, dilation
        )
    return conv(w, n, x, weight, bias, stride, padding, dilation, groups)


def max_pool(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Any:
    """Largest value of each window."""
    return _pool(
        w,
        n,
        x,
        "MaxPool",
        kernel,
        stride,
        padding,
        ceil_mode,
        dilations=_ints(dilation, _val(x).ndim - 2),
    )


def max_pool_with_indices(w: Writer, n: fx.Node, *args: Any) -> Any:
    """The pooled values; their indices are not written."""
    _require_one_read(n)
    return [max_pool(w, n, *args), None]


def _require_one_read(n: fx.Node) -> None:
    if any(operands(u)[1] == 1 and u.users for u in n.users):
        raise UnsupportedOpError("the places that a pool took its values from")


def avg_pool(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: Any = None,
) -> Any:
    """Mean of each window."""
    padded = any(_ints(padding, 1))
    if ceil_mode and ((padded and count_include_pad) or divisor is not None):
        raise UnsupportedOpError("a mean over windows with a divisor of their own")
    counted = padded and (count_include_pad or divisor is not None)
    mean = _pool(
        w, n, x, "AveragePool", kernel, stride, padding, ceil_mode, count_include_pad=int(counted)
    )
    if divisor is None:
        return mean
    return w.op("Mul", mean, w.scalar(math.prod(_ints(kernel, _val(x).ndim - 2)) / divisor, x))


def _require_batch(n: fx.Node, x: fx.Node) -> None:
    """Refuse an image without a batch axis.

    The operand must have two axes more than the spatial axes that the op's name states.
    """
    spatial = next((int(c) for c in str(n.target) if c in "123"), 0)
    if spatial and _val(x).ndim != spatial + 2:
        raise UnsupportedOpError("a pool of a tensor without a batch")


def _pool(
    w: Writer,
    n: fx.Node,
    x: fx.Node,
    kind: str,
    kernel: Any,
    stride: Any,
    padding: Any,
    ceil: bool,
    **attributes: Any,
) -> Any:
    dims = _val(x).ndim - 2
    _require_batch(n, x)
    sizes, pads = _ints(kernel, dims), _ints(padding, dims)
    strides = _ints(stride, dims) if stride not in ((), []) else sizes
    dilations = attributes.get("dilations", [1] * dims)
    result = _val(n) if isinstance(n.meta["val"], torch.Tensor) else n.meta["val"][0]
    ends = list(pads)
    if ceil:
        reach = [dilations[d] * (sizes[d] - 1) + 1 for d in range(dims)]
        rooms = [_dim(x, 2 + d) + 2 * pads[d] - reach[d] for d in range(dims)]
        found = [int(v) for v in result.shape[2:]]
        if any(
            -(-room // step) + 1 != size
            for room, step, size in zip(rooms, strides, found, strict=True)
        ):
            # torch drops a last window that starts in the padding, ONNX before opset 22 may not:
            # written as plain padding.
            ends = [
                (found[d] - 1) * strides[d] + reach[d] - _dim(x, 2 + d) - pads[d]
                for d in range(dims)
            ]
            ends, ceil = [max(e, 0) for e in ends], False
    return w.op(
        kind,
        x,
        kernel_shape=sizes,
        strides=strides,
        pads=pads + ends,
        ceil_mode=int(ceil),
        **attributes,
    )


def adaptive_pool(kind: str, mean: str, whole: str) -> Write:
    """Return a writer for a pool with a given number of windows.

    Equal windows become one pool; others are written axis by axis.
    """

    def write(w: Writer, n: fx.Node, x: fx.Node, sizes: Any = None) -> Any:
        _require_batch(n, x)
        value = n.meta["val"] if isinstance(n.meta["val"], torch.Tensor) else n.meta["val"][0]
        wanted = [int(v) for v in value.shape[2:]]
        if all(s == 1 for s in wanted):
            return w.op(whole, x)
        have = [_dim(x, 2 + d) for d in range(len(wanted))]
        if not any(h % s for h, s in zip(have, wanted, strict=True)):
            windows = [h // s for h, s in zip(have, wanted, strict=True)]
            return w.op(kind, x, kernel_shape=windows, strides=windows)
        result: Any = x
        for d, (size, count) in enumerate(zip(have, wanted, strict=True)):
            result = _windows(
                w,
                result,
                mean,
                2 + d,
                [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)],
            )
        return result

    return write


def _windows(w: Writer, x: Any, kind: str, axis: int, edges: Sequence[tuple[int, int]]) -> Any:
    """Reduce ranges along one axis to one entry each."""
    parts = [
        w.reduce(kind, w.op("Slice", x, [a], [b], [axis]), [axis], keepdims=True) for a, b in edges
    ]
    return w.op("Concat", *parts, axis=axis)


def adaptive_max_pool(w: Writer, n: fx.Node, x: fx.Node, sizes: Sequence[int]) -> Any:
    """The largest value of each window."""
    _require_one_read(n)
    return [adaptive_pool("MaxPool", "ReduceMax", "GlobalMaxPool")(w, n, x, sizes), None]


def upsample(mode: str, place: str = "", **attributes: Any) -> Write:
    """Return a writer for resampling to twice, or any, size.

    Args:
        mode: as ONNX calls it.
        place: how coordinates of the result map to those of the operand; empty where the call says
            it.
        attributes: further attributes.
    """

    def write(w: Writer, n: fx.Node, x: fx.Node, *args: Any) -> Any:
        *aligned, factors = args[1:]
        have, want = _static(_val(x).shape[2:]), _static(_val(n).shape[2:])
        how = place or ("align_corners" if aligned[0] else "half_pixel")
        if factors is not None and any(
            h * f != v for h, f, v in zip(have, factors, want, strict=True)
        ):
            scales = np.asarray([1.0, 1.0, *factors], dtype=np.float32)
            return w.op(
                "Resize",
                x,
                None,
                scales,
                mode=mode,
                coordinate_transformation_mode=how,
                **attributes,
            )
        size = w.op("Concat", w.op("Slice", w.op("Shape", x), [0], [2], [0]), want, axis=0)
        return w.op(
            "Resize",
            x,
            None,
            None,
            size,
            mode=mode,
            coordinate_transformation_mode=how,
            **attributes,
        )

    return write


def grid_sample(
    w: Writer, n: fx.Node, x: fx.Node, grid: fx.Node, mode: int, padding: int, aligned: bool
) -> Any:
    """Sample an image at computed positions."""
    if w.opset < 16 or _val(x).ndim > 4:
        raise UnsupportedOpError("sampling at computed places before opset 16, or of volumes")
    modes = ("linear", "nearest", "cubic") if w.opset >= 20 else ("bilinear", "nearest", "bicubic")
    beyond = ("zeros", "border", "reflection")[padding]
    return w.op(
        "GridSample", x, grid, mode=modes[mode], padding_mode=beyond, align_corners=int(aligned)
    )


def pixel_shuffle(w: Writer, n: fx.Node, x: fx.Node, factor: int) -> Any:
    """Channels become pixels."""
    return w.op("DepthToSpace", x, blocksize=factor, mode="CRD")


OPS: dict[Any, Write] = {
    **{
        t: unary(k)
        for t, k in {
            aten.relu.default: "Relu",
            aten.sigmoid.default: "Sigmoid",
            aten.tanh.default: "Tanh",
            aten.exp.default: "Exp",
            aten.log.default: "Log",
            aten.sqrt.default: "Sqrt",
            aten.abs.default: "Abs",
            aten.neg.default: "Neg",
            aten.erf.default: "Erf",
            aten.sin.default: "Sin",
            aten.cos.default: "Cos",
            aten.floor.default: "Floor",
            aten.ceil.default: "Ceil",
            aten.round.default: "Round",
            aten.reciprocal.default: "Reciprocal",
            aten.logical_not.default: "Not",
            aten.sign.default: "Sign",
        }.items()
    },
    aten.silu.default: lambda w, n, x: w.op("Mul", x, w.op("Sigmoid", x)),
    aten.square.default: lambda w, n, x: w.op("Mul", x, x),
    aten.rsqrt.default: lambda w, n, x: w.op("Reciprocal", w.op("Sqrt", x)),
    aten.gelu.default: gelu,
    aten.hardswish.default: hardswish,
    aten.hardsigmoid.default: hardsigmoid,
    aten.mish.default: mish,
    aten.relu6.default: lambda w, n, x: clamp(w, n, x, 0.0, 6.0),
    aten.hardtanh.default: lambda w, n, x, low=-1.0, high=1.0: clamp(w, n, x, low, high),
    aten.clamp.default: clamp,
    aten.clamp_min.default: clamp,
    aten.clamp_max.default: lambda w, n, x, high: clamp(w, n, x, None, high),
    aten.leaky_relu.default: lambda w, n, x, slope=0.01: w.op("LeakyRelu", x, alpha=float(slope)),
    aten.elu.default: lambda w, n, x, alpha=1.0: w.op("Elu", x, alpha=float(alpha)),
    aten.selu.default: unary("Selu"),
    aten.softplus.default: softplus,
    aten.glu.default: glu,
    aten.prelu.default: lambda w, n, x, slope: w.op(
        "PRelu",
        x,
        slope
        if _val(slope).numel() == 1
        else w.op("Unsqueeze", slope, list(range(1, _val(x).ndim - 1))),
    ),
    **{
        t: _binary(k)
        for t, k in {
            aten.add.Tensor: "Add",
            aten.add.Scalar: "Add",
            aten.sub.Tensor: "Sub",
            aten.sub.Scalar: "Sub",
            aten.mul.Tensor: "Mul",
            aten.mul.Scalar: "Mul",
            aten.div.Tensor: "Div",
            aten.div.Scalar: "Div",
            aten.maximum.default: "Max",
            aten.minimum.default: "Min",
            aten.pow.Tensor_Scalar: "Pow",
            aten.pow.Tensor_Tensor: "Pow",
            aten.eq.Scalar: "Equal",
            aten.eq.Tensor: "Equal",
            aten.lt.Scalar: "Less",
            aten.lt.Tensor: "Less",
            aten.gt.Scalar: "Greater",
            aten.gt.Tensor: "Greater",
            aten.le.Tensor: "LessOrEqual",
            aten.le.Scalar: "LessOrEqual",
            aten.ge.Tensor: "GreaterOrEqual",
            aten.ge.Scalar: "GreaterOrEqual",
            aten.logical_and.default: "And",
            aten.logical_or.default: "Or",
            aten.div.Tensor_mode: "Div",
            aten.div.Scalar_mode: "Div",
            operator.add: "Add",
            operator.sub: "Sub",
            operator.mul: "Mul",
            operator.floordiv: "Div",
        }.items()
    },
    aten.rsub.Scalar: _swapped(_binary("Sub")),
    aten.rsub.Tensor: _swapped(_binary("Sub")),
    aten.pow.Scalar: _binary("Pow"),
    aten.addcmul.default: addcmul,
    aten.to.dtype: cast,
    aten._to_copy.default: cast,
    aten.type_as.default: cast,
    aten.where.self: where,
    aten.where.Scalar: where,
    aten.where.ScalarSelf: where,
    aten.where.ScalarOther: where,
    aten.masked_fill.Scalar: masked_fill,
    aten.sym_size.int: sym_size,
    aten.reshape.default: reshape,
    aten.expand.default: expand,
    aten.expand_as.default: lambda w, n, x, like: w.op("Expand", x, w.op("Shape", like)),
    aten.permute.default: permute,
    aten.transpose.int: transpose,
    aten.t.default: transpose,
    aten.unsqueeze.default: unsqueeze,
    aten.squeeze.dim: squeeze,
    aten.squeeze.dims: squeeze,
    aten.slice.Tensor: cut,
    aten.select.int: select,
    aten.split_with_sizes.default: split,
    operator.getitem: getitem,
    aten.roll.default: roll,
    aten.flip.default: flip,
    aten.repeat.default: repeat,
    aten.cat.default: lambda w, n, tensors, d=0: w.op("Concat", *tensors, axis=d),
    aten.stack.default: stack,
    aten.index.Tensor: index,
    aten.index_select.default: lambda w, n, x, d, i: w.op("Gather", x, i, axis=d),
    aten.embedding.default: lambda w, n, table, i, *ignored: w.op("Gather", table, i, axis=0),
    aten.pad.default: pad,
    aten.constant_pad_nd.default: pad,
    aten.mean.default: reduction("ReduceMean"),
    aten.mean.dim: reduction("ReduceMean"),
    aten.sum.dim_IntList: reduction("ReduceSum"),
    aten.sum.default: reduction("ReduceSum"),
    aten.amax.default: reduction("ReduceMax"),
    aten.amin.default: reduction("ReduceMin"),
    aten.linalg_vector_norm.default: vector_norm,
    aten.var.correction: variance,
    aten.var.dim: lambda w, n, x, dims=None, unbiased=True, keepdim=False: variance(
        w, n, x, dims, int(unbiased), keepdim
    ),
    aten.matmul.default: lambda w, n, a, b: w.op("MatMul", a, b),
    aten.bmm.default: lambda w, n, a, b: w.op("MatMul", a, b),
    aten.mm.default: lambda w, n, a, b: w.op("MatMul", a, b),
    aten.baddbmm.default: baddbmm,
    aten.addmm.default: baddbmm,
    aten.einsum.default: einsum,
    aten.softmax.int: softmax("Softmax"),
    aten.log_softmax.int: softmax("LogSoftmax"),
    aten._softmax.default: softmax("Softmax"),
    aten.layer_norm.default: layer_norm,
    aten.group_norm.default: group_norm,
    aten.conv1d.default: conv,
    aten.conv2d.default: conv,
    aten.conv3d.default: conv,
    aten.convolution.default: convolution,
    aten.conv_transpose1d.default: conv_transpose,
    aten.conv_transpose2d.input: conv_transpose,
    aten.conv_transpose3d.input: conv_transpose,
    aten.ne.Scalar: not_equal,
    aten.ne.Tensor: not_equal,
    aten.floor_divide.default: floor_divide,
    **{
        t: logical(k)
        for t, k in {
            aten.__and__.Tensor: "And",
            aten.bitwise_and.Tensor: "And",
            aten.__or__.Tensor: "Or",
            aten.bitwise_or.Tensor: "Or",
            aten.__xor__.Tensor: "Xor",
            aten.bitwise_xor.Tensor: "Xor",
            aten.logical_xor.default: "Xor",
        }.items()
    },
    aten.zeros.default: filled(0),
    aten.ones.default: filled(1),
    aten.full.default: filled(),
    aten.zeros_like.default: filled(0, like=True),
    aten.ones_like.default: filled(1, like=True),
    aten.full_like.default: filled(like=True),
    aten.new_zeros.default: filled(0, after=1),
    aten.new_ones.default: filled(1, after=1),
    aten.new_full.default: filled(after=1),
    aten.topk.default: top_k,
    aten.sort.default: sort,
    aten.argsort.default: lambda w, n, *args: sort(w, n, *args)[1],
    # ONNX puts the lower index first where values are equal.
    aten.sort.stable: lambda w, n, x, stable=None, dim=-1, descending=False: sort(
        w, n, x, dim, descending
    ),
    aten.argsort.stable: lambda w, n, x, stable=True, dim=-1, descending=False: sort(
        w, n, x, dim, descending
    )[1],
    aten.argmax.default: arg_extreme("ArgMax"),
    aten.argmin.default: arg_extreme("ArgMin"),
    aten.max.dim: extreme("Max"),
    aten.min.dim: extreme("Min"),
    aten.cumsum.default: cumsum,
    aten.logsumexp.default: reduction("ReduceLogSumExp"),
    aten.std.correction: deviation,
    aten.std.dim: lambda w, n, x, dims=None, unbiased=True, keepdim=False: deviation(
        w, n, x, dims, int(unbiased), keepdim
    ),
    aten.instance_norm.default: instance_norm,
    aten.grid_sampler.default: grid_sample,
    aten.grid_sampler_2d.default: grid_sample,
    aten.lstm.input: recurrent("LSTM", (0, 3, 1, 2), states=2),
    aten.gru.input: recurrent("GRU", (1, 0, 2), linear_before_reset=1),
    aten.rnn_tanh.input: recurrent("RNN", (0,), activations=["Tanh"]),
    aten.rnn_relu.input: recurrent("RNN", (0,), activations=["Relu"]),
    aten.max_pool1d.default: max_pool,
    aten.max_pool2d.default: max_pool,
    aten.max_pool3d.default: max_pool,
    aten.max_pool2d_with_indices.default: max_pool_with_indices,
    aten.avg_pool1d.default: avg_pool,
    aten.avg_pool2d.default: avg_pool,
    aten.avg_pool3d.default: avg_pool,
    **{
        t: adaptive_pool("AveragePool", "ReduceMean", "GlobalAveragePool")
        for t in (
            aten.adaptive_avg_pool1d.default,
            aten.adaptive_avg_pool2d.default,
            aten._adaptive_avg_pool2d.default,
            aten.adaptive_avg_pool3d.default,
        )
    },
    **dict.fromkeys(
        (
            aten.adaptive_max_pool1d.default,
            aten.adaptive_max_pool2d.default,
            aten.adaptive_max_pool3d.default,
        ),
        adaptive_max_pool,
    ),
    **{
        t: upsample("nearest", "asymmetric", nearest_mode="floor")
        for t in (
            aten.upsample_nearest1d.vec,
            aten.upsample_nearest2d.vec,
            aten.upsample_nearest3d.vec,
        )
    },
    **{
        t: upsample("nearest", "half_pixel", nearest_mode="round_prefer_ceil")
        for t in (
            aten._upsample_nearest_exact1d.vec,
            aten._upsample_nearest_exact2d.vec,
            aten._upsample_nearest_exact3d.vec,
        )
    },
    **{
        t: upsample("linear")
        for t in (
            aten.upsample_linear1d.vec,
            aten.upsample_bilinear2d.vec,
            aten.upsample_trilinear3d.vec,
        )
    },
    aten.upsample_bicubic2d.vec: upsample("cubic", cubic_coeff_a=-0.75),
    aten.pixel_shuffle.default: pixel_shuffle,
}
