"""Fake-quantize calls as Q/DQ pairs, or as float ops where a format has no kernel."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from onnx import TensorProto
from torch import fx

from trtq.errors import ExportError
from trtq.export.writer import Writer
from trtq.onnx_node import FP4_DYNAMIC
from trtq.platform.target import CODE_OPSETS
from trtq.quant.fake_quantize import LOG_EPSILON, FakeQuantizeCall
from trtq.quant.formats import FP4_BLOCK, FP8_LARGEST

FP8_OPSET, FP4_OPSET = CODE_OPSETS["FP8"], CODE_OPSETS["FP4"]
TRT_DOMAIN = "trt"


def pair(w: Writer, n: fx.Node, *given: Any) -> str:
    """Write a call as QuantizeLinear and DequantizeLinear.

    The zero point is an explicit INT8 one; ``axis`` is only set per channel.

    Codes of fewer than 8 bits use an INT8 container: an activation is first clipped to the range of
    its codes, a weight is already on its codes. A format without a kernel is written in float: a
    weight as the values of its codes, a log2 activation as the ops that compute it.

    Args:
        w: receives the nodes, which name the quantizer in their metadata.
        n: the call.
        given: its arguments, as :class:`trtq.quant.fake_quantize.FakeQuantizeCall` has them.

    Returns:
        The name of the dequantized tensor.

    Raises:
        ExportError: codes outside of INT8, or FP8 or NVFP4 in an opset that lacks them.
    """
    call = FakeQuantizeCall(*given)
    w.scope = w.quantizer = call.name
    try:
        return _written(w, n, call)
    finally:
        w.quantizer = ""


def _written(w: Writer, n: fx.Node, call: FakeQuantizeCall) -> str:
    if call.kind in ("asymmetric", "log2") and call.of_constant:
        return w.value(call.x)
    if call.kind == "log2":
        return _log2(w, call)
    if call.kind == "fp4":
        return _fp4(w, n, call)
    if w.array(call.scale).ndim > 1:
        return _int4_blocks(w, n, call)
    axis = _stored_axis(w, n, call)
    if call.kind == "fp8":
        return _fp8(w, call, axis)
    if call.kind != "uniform" or call.qmin < -128 or call.qmax > 127:
        raise ExportError(
            f"Cannot write the format of {call.name} as Q/DQ",
            f"{call.kind}, codes {call.qmin}..{call.qmax}",
            "Only codes within INT8 around a zero point of 0 have a kernel",
        )
    if w.int4 and call.of_constant and (call.qmin, call.qmax) == (-8, 7):
        return _int4(w, call, axis)
    x = _clipped(w, call)
    zeros = w.constant(np.zeros(w.array(call.scale).shape, dtype=np.int8))
    return _q_dq(w, x, call.scale, zeros, axis)


def _clipped(w: Writer, call: FakeQuantizeCall) -> Any:
    """Return an activation within the range of its codes; a weight is on its codes already."""
    codes = (call.qmin, call.qmax)
    if codes == (-128, 127) or call.of_constant:
        return call.x
    scale = w.array(call.scale)
    low, high = (w.constant(np.asarray(code * scale, dtype=np.float32)) for code in codes)
    return w.op("Clip", call.x, low, high)


def _stored_axis(w: Writer, n: fx.Node, call: FakeQuantizeCall) -> int | None:
    """Return the axis of a scale per channel in the tensor as it is stored."""
    if call.axis is not None and n in w.transposed:
        return 1 - call.axis % 2
    return call.axis


def _q_dq(w: Writer, x: Any, scale: fx.Node, zeros: str, axis: int | None) -> str:
    # TensorRT 8.0 refuses an axis beside a scalar scale.
    codes = w.op("QuantizeLinear", x, scale, zeros, axis=axis)
    return str(w.op("DequantizeLinear", codes, scale, zeros, axis=axis))


def _fp8(w: Writer, call: FakeQuantizeCall, axis: int | None) -> str:
    """Write the pair with an E4M3 zero point, which ONNX has from opset 19 on."""
    if w.opset < FP8_OPSET:
        raise ExportError(
            f"Cannot write {call.name} in FP8",
            f"ONNX has it from opset {FP8_OPSET} on, asked for {w.opset}",
            "Give --opset 20",
        )
    return _q_dq(w, call.x, call.scale, w.fp8_zeros(w.array(call.scale).shape), axis)


def _log2(w: Writer, call: FakeQuantizeCall) -> str:
    """Write S3's log2 quantization in float ops, in the order the simulation computes."""

    def scalar(value: Any) -> str:
        return w.constant(np.asarray(value, dtype=np.float32))

    step, zero = w.array(call.scale), w.array(call.zero_point)
    log = w.op("Log", w.op("Add", call.x, scalar(LOG_EPSILON)))
    factor = 1.0 / (math.log(2.0) * torch.tensor(step))
    line = w.op("Add", w.op("Mul", log, scalar(factor)), scalar(zero))
    code = w.op("Clip", w.op("Round", line), scalar(call.qmin), scalar(call.qmax))
    exponent = w.op("Mul", w.op("Sub", code, scalar(zero)), scalar(step))
    return str(w.op("Pow", scalar(2.0), exponent))


def _int4(w: Writer, call: FakeQuantizeCall, axis: int | None) -> str:
    """Write a weight's codes as INT4 with a DequantizeLinear only: half the bytes of INT8."""
    value, step = w.array(call.x), w.array(call.scale)
    if axis is not None:
        step = step.reshape([-1 if d == axis else 1 for d in range(value.ndim)])
    name = w.int4_constant(np.round(value / step), f"{call.x.target}_int4")
    return str(w.op("DequantizeLinear", name, call.scale, axis=axis))


def _int4_blocks(w: Writer, n: fx.Node, call: FakeQuantizeCall) -> str:
    """Write a weight's codes as INT4, with a scale for each block of inputs."""
    blocks = _Blocks.of(w, n, call)
    codes = w.int4_constant(np.round(blocks.weight / blocks.steps), f"{call.x.target}_int4")
    scales = w.constant(blocks.scales, f"{call.name}.scales")
    return str(w.op("DequantizeLinear", codes, scales, axis=blocks.axis, block_size=blocks.size))


class _Blocks(NamedTuple):
    """A weight in blocks as it is stored.

    Attributes:
        weight, scales: float32, [N, K] and [N, K / size], or both transposed.
        axis: of the inputs.
        size: values of a block.
    """

    weight: npt.NDArray[Any]
    scales: npt.NDArray[Any]
    axis: int
    size: int

    @classmethod
    def of(cls, w: Writer, n: fx.Node, call: FakeQuantizeCall) -> _Blocks:
        """Return the weight of a call."""
        weight, scales = w.array(call.x), w.array(call.scale)
        axis = 0 if n in w.transposed else 1
        scales = scales.T if n in w.transposed else scales
        return cls(weight, scales, axis, weight.shape[axis] // scales.shape[axis])

    @property
    def steps(self) -> npt.NDArray[Any]:
        """The scale of each weight."""
        return np.repeat(self.scales, self.size, axis=self.axis)


def _fp4(w: Writer, n: fx.Node, call: FakeQuantizeCall) -> str:
    """Write NVFP4: a weight as its codes, an activation with TensorRT's op that makes them."""
    if w.opset < FP4_OPSET:
        raise ExportError(
            f"Cannot write {call.name} in NVFP4",
            f"ONNX has it from opset {FP4_OPSET} on, asked for {w.opset}",
            f"Give --opset {FP4_OPSET}",
        )
    if call.of_constant:
        return _fp4_weight(w, n, call)
    w.domains[TRT_DOMAIN] = 1
    unit = w.array(call.scale)
    codes, scales = w.op(
        FP4_DYNAMIC,
        call.x,
        call.scale,
        outputs=2,
        domain=TRT_DOMAIN,
        axis=-1,
        block_size=FP4_BLOCK,
        scale_type=TensorProto.FLOAT8E4M3FN,
    )
    blocks = w.op("DequantizeLinear", scales, w.constant(unit, f"{call.name}.unit"))
    return str(w.op("DequantizeLinear", codes, blocks, axis=-1, block_size=FP4_BLOCK))


def _fp4_weight(w: Writer, n: fx.Node, call: FakeQuantizeCall) -> str:
    blocks = _Blocks.of(w, n, call)
    unit = np.float32(blocks.scales.max() / FP8_LARGEST)
    codes = w.codes_constant(blocks.weight / blocks.steps, "FLOAT4E2M1", f"{call.x.target}_fp4")
    scales = w.codes_constant(blocks.scales / unit, "FLOAT8E4M3FN", f"{call.name}.scales")
    scaled = w.op("DequantizeLinear", scales, w.constant(np.asarray(unit), f"{call.name}.unit"))
    return str(w.op("DequantizeLinear", codes, scaled, axis=blocks.axis, block_size=FP4_BLOCK))
