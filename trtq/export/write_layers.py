"""Convolutions and matmuls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import fx

from trtq.export.write_base import ints, static, val
from trtq.export.writer import Writer
from trtq.graph.nodes import operands, zero_pad


class Geometry(NamedTuple):
    """The arguments of ATen's convolutions behind their constants."""

    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class TransposedGeometry(NamedTuple):
    """Those of its transposed convolutions."""

    stride: Any = 1
    padding: Any = 0
    output_padding: Any = 0
    groups: int = 1
    dilation: Any = 1


class AnyGeometry(NamedTuple):
    """Those of the general form that both are cases of."""

    stride: Any
    padding: Any
    dilation: Any
    transposed: bool
    output_padding: Any
    groups: int


def conv(
    w: Writer, n: fx.Node, x: fx.Node, weight: fx.Node, bias: Any = None, *given: Any, **named: Any
) -> Any:
    """A convolution with any number of spatial axes.

    A pad with zeros before it becomes its own padding, each side separately.
    """
    shape = Geometry(*given, **named)
    dims = val(weight).ndim - 2
    x, begins, ends = _absorb_pad(x, ints(shape.padding, dims))
    return w.op(
        "Conv",
        x,
        weight,
        *([] if bias is None else [bias]),
        strides=ints(shape.stride, dims),
        pads=begins + ends,
        dilations=ints(shape.dilation, dims),
        group=shape.groups,
        kernel_shape=[int(k) for k in val(weight).shape[2:]],
    )


def conv_transpose(
    w: Writer, n: fx.Node, x: fx.Node, weight: fx.Node, bias: Any = None, *given: Any, **named: Any
) -> Any:
    """A transposed convolution."""
    shape = TransposedGeometry(*given, **named)
    dims = val(weight).ndim - 2
    return w.op(
        "ConvTranspose",
        x,
        weight,
        *([] if bias is None else [bias]),
        strides=ints(shape.stride, dims),
        pads=ints(shape.padding, dims) * 2,
        output_padding=ints(shape.output_padding, dims),
        dilations=ints(shape.dilation, dims),
        group=shape.groups,
        kernel_shape=[int(k) for k in val(weight).shape[2:]],
    )


def convolution(w: Writer, n: fx.Node, x: fx.Node, weight: fx.Node, bias: Any, *given: Any) -> Any:
    """The general form."""
    shape = AnyGeometry(*given)
    if shape.transposed:
        rest = (shape.stride, shape.padding, shape.output_padding, shape.groups, shape.dilation)
        return conv_transpose(w, n, x, weight, bias, *rest)
    return conv(w, n, x, weight, bias, shape.stride, shape.padding, shape.dilation, shape.groups)


def _absorb_pad(x: fx.Node, padding: list[int]) -> tuple[fx.Node, list[int], list[int]]:
    """Return the operand before a zero pad, and the padding before and behind each axis."""
    spatial = len(padding)
    amounts = zero_pad(x)
    if amounts is None or any(amounts[2 * spatial :]) or min(static(amounts), default=0) < 0:
        return x, padding, padding
    flat = [*static(amounts), *[0] * (2 * spatial - len(amounts))]
    pairs = [flat[2 * (spatial - 1 - d) : 2 * (spatial - d)] for d in range(spatial)]
    begins = [p + before for p, (before, _) in zip(padding, pairs, strict=True)]
    ends = [p + behind for p, (_, behind) in zip(padding, pairs, strict=True)]
    return operands(x)[0], begins, ends


def linear(w: Writer, n: fx.Node, x: fx.Node, weight: fx.Node, bias: Any = None) -> Any:
    """X @ weight.T + bias; the weight of a linear alone is stored transposed."""
    turned = weight if weight in w.transposed else w.op("Transpose", weight, perm=[1, 0])
    product = w.op("MatMul", x, turned)
    return product if bias is None else w.op("Add", product, bias)


def matmul(w: Writer, n: fx.Node, a: fx.Node, b: fx.Node) -> Any:
    """A @ b."""
    return w.op("MatMul", a, b)


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
