"""The one op of simulation: quantize, then dequantize.

It computes what ONNX QuantizeLinear and DequantizeLinear compute, in the same order: divide by the
scale, round half to even, add the zero point, clamp, subtract the zero point, multiply by the
scale. The kind ``log2`` does so with log2(x + 1e-5), and raises 2 to the result (S3 eq. 4-6, in the
form that inverts: the equations as printed do not, docs/methods.md). The kind ``fp8`` rounds to the
nearest E4M3 value instead of the nearest integer, ``fp4`` to the nearest E2M1 value.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import fx

from trtq.quant.formats import FP4_BLOCK, FP4_LARGEST, FP8_LARGEST

LOG_EPSILON = 1e-5  # S3: keeps the logarithm of an exact 0 finite


def along_axis(value: torch.Tensor, ndim: int, axis: int | None) -> torch.Tensor:
    """Return ``value`` [C] shaped to broadcast along one axis of a tensor.

    Args:
        value: [C], or anything where ``axis`` is None.
        ndim: axes of the tensor.
        axis: may be negative; None returns ``value`` as it is.
    """
    return (
        value
        if axis is None
        else value.reshape([-1 if d == axis % ndim else 1 for d in range(ndim)])
    )


def spread(scale: torch.Tensor, x: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Return ``scale`` shaped to divide ``x``.

    Args:
        scale: shape [], [C] along ``axis``, or [C, K / block], one for each block of a row.
        x: what is quantized; [C, K] for scales of blocks.
        axis: that ``scale`` runs along; ignored for scales of blocks.
    """
    if scale.ndim > 1:
        return scale.repeat_interleave(x.shape[-1] // scale.shape[-1], dim=-1)
    return along_axis(scale, x.ndim, axis)


def e2m1(x: torch.Tensor) -> torch.Tensor:
    """Return the nearest E2M1 numbers (0, 0.5, 1, 1.5, 2, 3, 4, 6), ties to even.

    Args:
        x: float32, any shape; magnitudes above 6 become 6.
    """
    size = x.abs().clamp_max(FP4_LARGEST)
    step = torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    rounded: torch.Tensor = (size / step).round_().mul_(step).copysign_(x)
    return rounded


def e4m3(x: torch.Tensor) -> torch.Tensor:
    """Return the nearest E4M3 numbers, ties to even; a copy in the type of ``x``.

    Args:
        x: any shape; magnitudes above 448 become 448.
    """
    return x.clamp(-FP8_LARGEST, FP8_LARGEST).to(torch.float8_e4m3fn).to(x.dtype)


def block_scales(x: torch.Tensor, unit: torch.Tensor) -> torch.Tensor:
    """Return the scales of blocks of 16 along the last axis as NVFP4 has them, [..., K / 16].

    Each is an E4M3 number times ``unit``, the nearest to the block's largest magnitude / 6.

    Args:
        x: float32, [..., K], K a multiple of 16.
        unit: float32, shape [], greater than 0: the tensor's largest magnitude / (6 * 448).
    """
    largest = x.reshape(*x.shape[:-1], -1, FP4_BLOCK).abs().amax(-1)
    codes = (largest / (FP4_LARGEST * unit)).clamp_max(FP8_LARGEST).to(torch.float8_e4m3fn)
    return codes.to(x.dtype) * unit


def _fp4_steps(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the scale of each value; an activation's ``scale`` is the unit of its blocks'."""
    return spread(block_scales(x, scale) if scale.ndim == 0 else scale, x, None)


def _fp4(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in NVFP4."""
    s = _fp4_steps(x, scale)
    return e2m1(x / torch.where(s > 0, s, 1.0)).mul_(s)


@torch.library.custom_op("trtq::fake_quantize", mutates_args=())
def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int | None,
    qmin: int,
    qmax: int,
    name: str,
    kind: str = "uniform",
) -> torch.Tensor:
    """Return ``x`` rounded to the nearest of the codes' values.

    Args:
        x: float32, any shape.
        scale: float32, greater than 0; shape [], [C] when ``axis`` is given, or [C, K / block] for
            a matrix in blocks.
        zero_point: the code of real zero, shape of ``scale``; None for 0.
        axis: the axis of ``x`` that ``scale`` runs along, None for one scale.
        qmin: the lowest code.
        qmax: the highest code.
        name: of the quantizer; it travels through every re-export of the graph into the ONNX file.
        kind: of the format.
    """
    if kind == "log2":
        codes = positions(x, scale, zero_point, axis, kind).round_().clamp_(qmin, qmax)
        z = 0.0 if zero_point is None else along_axis(zero_point, x.ndim, axis)
        return codes.sub_(z).mul_(along_axis(scale, x.ndim, axis)).exp2_()
    if kind == "fp4":
        return _fp4(x, scale)
    s = spread(scale, x, axis)
    if kind == "fp8":
        return e4m3(torch.div(x, s)).mul_(s)
    out = torch.div(x, s).round_()
    if zero_point is None:
        return out.clamp_(qmin, qmax).mul_(s)
    z = along_axis(zero_point, x.ndim, axis).to(x.dtype)
    return out.add_(z).clamp_(qmin, qmax).sub_(z).mul_(s)


def positions(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int | None,
    kind: str,
) -> torch.Tensor:
    """Return the positions of ``x`` on the line of codes, neither rounded nor clamped.

    Args:
        x: float32, any shape.
        scale: as in :func:`fake_quantize`.
        zero_point: as in :func:`fake_quantize`.
        axis: as in :func:`fake_quantize`.
        kind: of the format.

    Returns:
        A new tensor of the shape of ``x``: ``x / scale + zero_point``, for log2
        ``log2(x + 1e-5) / scale + zero_point``, for fp8 and fp4 in units before the scale.
    """
    if kind == "fp4":
        s = _fp4_steps(x, scale)
        return x / torch.where(s > 0, s, 1.0)
    s = spread(scale, x, axis)
    # ONNX has the natural logarithm only; one factor turns it into steps.
    out = (
        x.add(LOG_EPSILON).log_().mul_(1.0 / (math.log(2.0) * s))
        if kind == "log2"
        else torch.div(x, s)
    )
    return (
        out if zero_point is None else out.add_(along_axis(zero_point, x.ndim, axis).to(out.dtype))
    )


def spacing(where: torch.Tensor, kind: str) -> torch.Tensor | float:
    """Return the distance between neighbouring codes at these positions.

    It is 1, for E4M3 2^(exponent - 3) and no less than 2^-9, for E2M1 0.5, 1 or 2.

    Args:
        where: positions from :func:`positions`.
        kind: of the format.

    Returns:
        A tensor of the shape of ``where`` for fp8 and fp4, else 1.0.
    """
    if kind == "fp4":
        size = where.abs()
        return torch.where(size < 2.0, 0.5, torch.where(size < 4.0, 1.0, 2.0))
    return where.abs().clamp_min(2.0**-6).log2().floor().sub(3).exp2() if kind == "fp8" else 1.0


@fake_quantize.register_fake
def _(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor | None,
    axis: int | None,
    qmin: int,
    qmax: int,
    name: str,
    kind: str = "uniform",
) -> torch.Tensor:
    return torch.empty_like(x)


def _setup(ctx: Any, inputs: tuple[object, ...], output: torch.Tensor) -> None:
    x, scale, zero_point, axis, qmin, qmax, _, kind = inputs
    ctx.save_for_backward(x, scale, zero_point)
    ctx.axis, ctx.qmin, ctx.qmax, ctx.kind = axis, qmin, qmax, kind


def _backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    """Straight-through gradient inside the range, zero where the value was clamped.

    This is the clipped form of Bengio et al. 2013.
    """
    x, scale, zero_point = ctx.saved_tensors
    codes = positions(x, scale, zero_point, ctx.axis, ctx.kind).round()
    inside = (codes >= ctx.qmin) & (codes <= ctx.qmax)
    return grad * inside, None, None, None, None, None, None, None


fake_quantize.register_autograd(_backward, setup_context=_setup)


FAKE_QUANTIZE = torch.ops.trtq.fake_quantize.default


class FakeQuantizeCall(NamedTuple):
    """The arguments of a fake-quantize call: nodes in a graph, tensors where one runs.

    Attributes:
        x, scale, zero_point, axis, qmin, qmax, name, kind: as in :func:`fake_quantize`.
    """

    x: Any
    scale: Any
    zero_point: Any
    axis: int | None
    qmin: int
    qmax: int
    name: str
    kind: str = "uniform"

    @classmethod
    def of(cls, node: object) -> FakeQuantizeCall | None:
        """Return the arguments of a node that is such a call, None for any other."""
        if isinstance(node, fx.Node) and node.target is FAKE_QUANTIZE:
            arguments: tuple[Any, ...] = node.args
            return cls(*arguments)
        return None

    @property
    def of_constant(self) -> bool:
        """Whether it quantizes a constant of the graph."""
        return isinstance(self.x, fx.Node) and self.x.op == "get_attr"

    def positions(self, values: torch.Tensor) -> torch.Tensor:
        """Return where ``values`` are on the line of codes, as :func:`positions` does."""
        return positions(values, self.scale, self.zero_point, self.axis, self.kind)
