"""Operators that compute value by value."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from trtq import ops
from trtq.export.write_base import converted, dim, is_natural, require_same_type, val
from trtq.export.writer import UnsupportedOpError, Writer
from trtq.graph.dtypes import ONNX_TYPES


def unary(w: Writer, n: fx.Node, x: fx.Node, *given: Any) -> Any:
    """An op of one operand, its further arguments as attributes."""
    row = ops.of(n)
    if len(given) > len(row.attributes):
        raise UnsupportedOpError(f"more arguments than ONNX's {row.onnx_type} takes")
    values = [*given, *list(row.attributes.values())[len(given) :]]
    named: dict[str, Any] = {k: float(v) for k, v in zip(row.attributes, values, strict=True)}
    return w.op(row.onnx_type, x, **named)


def binary(w: Writer, n: fx.Node, a: Any, b: Any, alpha: Any = 1, rounding_mode: Any = None) -> Any:
    """An op of two operands, of which one may be a number."""
    return _binary(w, n, ops.of(n).onnx_type, a, b, alpha, rounding_mode)


def _binary(
    w: Writer, n: fx.Node, kind: str, a: Any, b: Any, alpha: Any = 1, rounding_mode: Any = None
) -> Any:
    if not isinstance(n.meta.get("val"), torch.Tensor):
        return _of_sizes(w, kind, a, b)
    if rounding_mode is not None and (
        rounding_mode != "floor" or not val(n).dtype.is_floating_point
    ):
        raise UnsupportedOpError("division with rounding")
    like = _operand_like(n, a, b)
    right = w.scalar(b, like)
    if alpha != 1:
        right = w.op("Mul", right, w.scalar(alpha, like))
    result = w.op(kind, w.scalar(a, like), right)
    return result if rounding_mode is None else w.op("Floor", result)


def _of_sizes(w: Writer, kind: str, a: Any, b: Any) -> Any:
    """Arithmetic on sizes, vectors of one integer.

    Python's // rounds down and ONNX's division towards zero: -7 // 2 is -4, Div gives -3. Where
    an operand may be negative, the remainder (of the divisor's sign, as in Python) is taken away
    first.
    """
    first, second = (v if isinstance(v, fx.Node) else [v] for v in (a, b))
    if kind == "Div" and not (is_natural(a) and is_natural(b)):
        first = w.op("Sub", first, w.op("Mod", first, second))
    return w.op(kind, first, second)


def rsub(w: Writer, n: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Any:
    """The second operand minus the first."""
    return _binary(w, n, "Sub", b, a, alpha)


def floor_divide(w: Writer, n: fx.Node, a: Any, b: Any, rounding_mode: Any = "floor") -> Any:
    """Divide and round down; ONNX's division of integers rounds towards zero."""
    if not val(n).dtype.is_floating_point:
        raise UnsupportedOpError("a division of integers")
    return _binary(w, n, "Div", a, b, rounding_mode=rounding_mode)


def not_equal(w: Writer, n: fx.Node, a: Any, b: Any) -> Any:
    """Compare for inequality; ONNX has the opposite."""
    return w.op("Not", _binary(w, n, "Equal", a, b))


def logical(w: Writer, n: fx.Node, a: fx.Node, b: fx.Node) -> Any:
    """A bitwise op, which on booleans is the logical one."""
    if val(a).dtype != torch.bool or val(b).dtype != torch.bool:
        raise UnsupportedOpError("bits of integers")
    return w.op(ops.of(n).onnx_type, a, b)


def _operand_like(n: fx.Node, *operands: Any) -> fx.Node:
    """Return a node of the type that the operands are computed in.

    This is the result, or a tensor operand for comparisons.
    """
    tensors = [
        o
        for o in operands
        if isinstance(o, fx.Node) and isinstance(o.meta.get("val"), torch.Tensor)
    ]
    types = {val(t).dtype for t in tensors}
    if val(n).dtype != torch.bool:
        if types - {val(n).dtype}:
            raise UnsupportedOpError("operands of different types")
        return n
    if len(types) > 1:
        raise UnsupportedOpError("a comparison of different types")
    return tensors[0]


def clamp(w: Writer, n: fx.Node, x: fx.Node, low: Any = None, high: Any = None) -> Any:
    """Clip; either bound may be missing."""
    require_same_type(n, x)
    return w.op(
        "Clip",
        x,
        None if low is None else w.scalar(low, x),
        None if high is None else w.scalar(high, x),
    )


def clamp_max(w: Writer, n: fx.Node, x: fx.Node, high: Any) -> Any:
    """Clip from above."""
    return clamp(w, n, x, None, high)


def relu6(w: Writer, n: fx.Node, x: fx.Node) -> Any:
    """clip(x, 0, 6)."""
    return clamp(w, n, x, 0.0, 6.0)


def hardtanh(w: Writer, n: fx.Node, x: fx.Node, low: Any = -1.0, high: Any = 1.0) -> Any:
    """clip(x, low, high)."""
    return clamp(w, n, x, low, high)


def silu(w: Writer, n: fx.Node, x: fx.Node) -> Any:
    """X * sigmoid(x)."""
    return w.op("Mul", x, w.op("Sigmoid", x))


def square(w: Writer, n: fx.Node, x: fx.Node) -> Any:
    """X * x."""
    return w.op("Mul", x, x)


def rsqrt(w: Writer, n: fx.Node, x: fx.Node) -> Any:
    """1 / sqrt(x)."""
    return w.op("Reciprocal", w.op("Sqrt", x))


def prelu(w: Writer, n: fx.Node, x: fx.Node, slope: fx.Node) -> Any:
    """ReLU with a slope per channel, or one for all."""
    spread = list(range(1, val(x).ndim - 1))
    return w.op("PRelu", x, slope if val(slope).numel() == 1 else w.op("Unsqueeze", slope, spread))


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


def glu(w: Writer, n: fx.Node, x: fx.Node, axis: int = -1) -> Any:
    """First half times the sigmoid of the second."""
    half = dim(x, axis) // 2
    a, b = w.op("Split", x, [half, half], outputs=2, axis=axis)
    return w.op("Mul", a, w.op("Sigmoid", b))


def addcmul(w: Writer, n: fx.Node, x: fx.Node, a: fx.Node, b: fx.Node, value: Any = 1) -> Any:
    """Add value * a * b to x."""
    require_same_type(n, x, a, b)
    product = w.op("Mul", a, b)
    return w.op("Add", x, product if value == 1 else w.op("Mul", product, w.scalar(value, x)))


def cast(w: Writer, n: fx.Node, x: fx.Node, *ignored: Any, **more: Any) -> Any:
    """Convert to the type of the result."""
    return w.op("Cast", x, to=ONNX_TYPES[val(n).dtype])


def where(w: Writer, n: fx.Node, condition: fx.Node, a: Any, b: Any) -> Any:
    """Choose by a mask; either side may be a number."""
    return w.op("Where", condition, converted(w, n, a), converted(w, n, b))


def masked_fill(w: Writer, n: fx.Node, x: fx.Node, mask: fx.Node, value: Any) -> Any:
    """Put ``value`` where the mask is true."""
    require_same_type(n, x)
    return w.op("Where", mask, w.scalar(value, x), x)
