"""Operators that compute each value from the values at its place.

A reading function takes the :class:`Call` of a node and returns its results, a tensor or a list of
them. It raises :class:`UnreadError` for a form that it does not read: ONNX Runtime computes that
node.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from trtq import ops
from trtq.reader.call import Call
from trtq.reader.values import HALVES, TORCH_TYPES, UnreadError

aten = torch.ops.aten


def unary(call: Call) -> torch.Tensor:
    """An operator whose row names the ATen op and its attributes."""
    row = ops.of(call.node)
    extra = [call.get(name, default) for name, default in row.attributes.items()]
    result: torch.Tensor = _overload(row.aten[0])(call.x(), *extra)
    return result


def binary(call: Call) -> torch.Tensor:
    """An operator with two operands, or any number of them folded from the left."""
    function = getattr(aten, ops.of(call.node).aten[0].partition(".")[0])
    if len(call) == 1:
        return call.x()
    if call.node.op_type in ("Max", "Min", "And", "Or", "Xor"):
        operands = call.tensors()
    else:
        operands = list(_operands(call))
    return functools.reduce(function, operands)


def _operands(call: Call) -> tuple[Any, Any]:
    """Return the operands; a constant of no axes as a number, which keeps the other's type."""
    a, b = call.value(0), call.value(1)
    if b.host is not None and b.host.ndim == 0 and a.host is None and b.dtype == a.dtype:
        return call.x(0), b.number()
    return call.x(0), call.x(1)


@functools.cache
def _overload(form: str) -> Callable[..., Any]:
    name, _, overload = form.rpartition(".")
    operator: Callable[..., Any] = getattr(getattr(aten, name), overload)
    return operator


def divide(call: Call) -> torch.Tensor:
    """A / b; of integers it is cut off towards zero."""
    a, b = _operands(call)
    if a.is_floating_point():
        return torch.div(a, b)
    return torch.div(a, b, rounding_mode="trunc")


def power(call: Call) -> torch.Tensor:
    """A ** b, of the type of a."""
    a, b = call.x(0), call.value(1)
    if b.host is not None and b.host.size == 1 and b.host.ndim <= a.ndim:
        number = b.number()
        exponent = int(number) if float(number).is_integer() else float(number)
        return torch.pow(a, exponent).to(a.dtype)
    return torch.pow(a, call.x(1)).to(a.dtype)


def modulo(call: Call) -> torch.Tensor:
    """The remainder: of the sign of b, with ``fmod`` of the sign of a."""
    function = torch.fmod if call.get("fmod", 0) else torch.remainder
    return function(call.x(0), call.x(1))


def many_sum(call: Call) -> torch.Tensor:
    """The sum of any number of operands."""
    return functools.reduce(torch.add, call.tensors())


def many_mean(call: Call) -> torch.Tensor:
    """The mean of any number of operands."""
    return many_sum(call) / len(call)


def clip(call: Call) -> torch.Tensor:
    """Bounds are attributes in old opsets, operands in new ones."""
    x = call.x()
    low, high = _bound(call, 1, "min"), _bound(call, 2, "max")
    if isinstance(low, torch.Tensor) or isinstance(high, torch.Tensor):
        x = x if low is None else torch.maximum(x, _as_tensor(low, x))
        return x if high is None else torch.minimum(x, _as_tensor(high, x))
    if low is None and high is None:
        return x.clone()
    return torch.clamp(x, low, high)


def _bound(call: Call, position: int, name: str) -> Any:
    if not call.has(position):
        return call.get(name)
    value = call.value(position)
    return value.number() if value.host is not None else call.x(position)


def _as_tensor(bound: Any, x: torch.Tensor) -> torch.Tensor:
    return bound if isinstance(bound, torch.Tensor) else torch.full_like(x, bound)


def cast(call: Call) -> torch.Tensor:
    """To another type; FP16 and BF16 are computed in float32."""
    return cast_to(call.x(), call.get("to"))


def cast_to(x: torch.Tensor, to: int) -> torch.Tensor:
    """Return a tensor as one of an ONNX type; FP16 and BF16 become float32.

    Args:
        x: any type.
        to: ``TensorProto.DataType``.

    Raises:
        UnreadError: torch lacks the type, or doubles would become 16 bits.
    """
    if to not in TORCH_TYPES:
        raise UnreadError("a cast to a type that torch does not have")
    if to in HALVES and x.dtype == torch.float64:
        raise UnreadError("a cast of doubles to 16 bits")
    return x.to(TORCH_TYPES[to])


def cast_like(call: Call) -> torch.Tensor:
    """To the type of the second operand."""
    return call.x(0).to(call.value(1).dtype)


def gelu(call: Call) -> torch.Tensor:
    """Exact, or approximated by tanh."""
    return functional.gelu(call.x(), approximate=call.get("approximate", "none"))


def hard_sigmoid(call: Call) -> torch.Tensor:
    """Clip(alpha x + beta, 0, 1); torch has it for alpha of 1/6 and beta of 1/2."""
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if np.float32(alpha) == np.float32(1 / 6) and beta == 0.5:
        return functional.hardsigmoid(call.x())
    return torch.clamp(call.x() * alpha + beta, 0.0, 1.0)


def prelu(call: Call) -> torch.Tensor:
    """A slope for negative values: one, one a channel, or of any shape that broadcasts."""
    x, slope = call.x(0), call.x(1)
    channels = 1 if x.ndim < 2 else x.shape[1]
    flat = slope.numel() == 1 or (
        x.ndim >= 2
        and slope.numel() == channels
        and slope.ndim >= x.ndim - 1
        and slope.shape[-(x.ndim - 1)] == channels
    )
    if flat and x.is_floating_point():
        return functional.prelu(x, slope.reshape(-1))
    return torch.where(x < 0, x * slope, x)


def selu(call: Call) -> torch.Tensor:
    """With ONNX's constants, torch's own; others are computed."""
    alpha, gamma = call.get("alpha", 1.6732632), call.get("gamma", 1.0507010)
    if math.isclose(alpha, 1.6732632, rel_tol=1e-5) and math.isclose(gamma, 1.050701, rel_tol=1e-5):
        return functional.selu(call.x())
    result: torch.Tensor = gamma * functional.elu(call.x(), alpha)
    return result


def thresholded_relu(call: Call) -> torch.Tensor:
    """X where it is above a threshold, else 0."""
    return functional.threshold(call.x(), call.get("alpha", 1.0), 0.0)


def shrink(call: Call) -> torch.Tensor:
    """X moved towards 0 by a bias, 0 where it is within a threshold."""
    x, lambd, bias = call.x(), call.get("lambd", 0.5), call.get("bias", 0.0)
    zero = torch.zeros_like(x)
    above = torch.where(x > lambd, x - bias, zero).to(x.dtype)
    return torch.where(x < -lambd, x + bias, above).to(x.dtype)


def swish(call: Call) -> torch.Tensor:
    """X sigmoid(alpha x)."""
    alpha = call.get("alpha", 1.0)
    return functional.silu(call.x()) if alpha == 1 else call.x() * torch.sigmoid(call.x() * alpha)


def is_inf(call: Call) -> torch.Tensor:
    """Whether a value is infinite, of the signs that count."""
    x = call.x()
    up, down = call.get("detect_positive", 1), call.get("detect_negative", 1)
    if up and down:
        return torch.isinf(x)
    if not up and not down:
        return torch.zeros_like(x, dtype=torch.bool)
    return x == (math.inf if up else -math.inf)


def bit_shift(call: Call) -> torch.Tensor:
    """To the left or to the right."""
    right = call.get("direction") == "RIGHT"
    return (torch.bitwise_right_shift if right else torch.bitwise_left_shift)(call.x(0), call.x(1))


def where(call: Call) -> torch.Tensor:
    """Elements of two operands, by a condition."""
    return torch.where(call.x(0), call.x(1), call.x(2))


def identity(call: Call) -> torch.Tensor:
    """The operand itself."""
    return call.x().clone()


def dropout(call: Call) -> list[torch.Tensor]:
    """In inference nothing is dropped."""
    if call.has(2) and bool(call.value(2).number()):
        raise UnreadError("dropout in training")
    x = call.x()
    return [x.clone(), torch.ones_like(x, dtype=torch.bool)][: len(call.node.output)]


def softmax(call: Call) -> torch.Tensor:
    """Along one axis; before opset 13 over all axes from it on."""
    log = call.node.op_type == "LogSoftmax"
    function = torch.log_softmax if log else torch.softmax
    x = call.x()
    if call.opset >= 13:
        return function(x, call.get("axis", -1))
    axis = call.get("axis", 1) % max(x.ndim, 1)
    if axis == x.ndim - 1:
        return function(x, axis)
    flat = function(x.flatten(axis), axis)
    return flat.reshape(x.shape)


def hardmax(call: Call) -> torch.Tensor:
    """1 at the first largest value of an axis, else 0."""
    x = call.x()
    axis = call.get("axis", -1 if call.opset >= 13 else 1) % x.ndim
    flat = x if call.opset >= 13 or axis == x.ndim - 1 else x.flatten(axis)
    places = flat.argmax(axis, keepdim=True)
    result = torch.zeros_like(flat).scatter(axis, places, 1)
    return result.reshape(x.shape)


def softsign(call: Call) -> torch.Tensor:
    """X / (1 + |x|)."""
    return functional.softsign(call.x())


BITS = {
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}


def bits(call: Call) -> torch.Tensor:
    """Bits of integers, pair by pair."""
    return BITS[call.node.op_type](call.x(0), call.x(1))
