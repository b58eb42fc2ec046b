"""Reductions: axes are an attribute in old opsets and an operand in new ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from trtq.reader.call import Call
from trtq.reader.values import UnreadError

Reduction = Callable[[torch.Tensor, "list[int]", bool], torch.Tensor]


def reduction(call: Call) -> torch.Tensor:
    """Reduce by the rule of the op type.

    No axes mean all of them, or none with ``noop_with_empty_axes``.
    """
    x, axes, keep = call.x(), call.axes(), bool(call.get("keepdims", 1))
    if not axes:
        if call.get("noop_with_empty_axes", 0):
            return EMPTY.get(call.node.op_type, torch.clone)(x)
        axes = list(range(x.ndim))
    return RULES[call.node.op_type](x, axes, keep)


def _prod(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def _mean(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    if not x.is_floating_point():
        raise UnreadError("a mean of integers")
    return torch.mean(x, axes, keepdim=keep)


def _sum(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def _norm(order: int) -> Reduction:
    def reduce(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
        if x.is_floating_point():
            norm: torch.Tensor = torch.linalg.vector_norm(x, order, dim=axes, keepdim=keep)
            return norm
        total = _sum(x.abs() if order == 1 else x * x, axes, keep)
        return total if order == 1 else total.double().sqrt().to(x.dtype)

    return reduce


def _extreme(function: Callable[..., Any], largest: bool) -> Reduction:
    def reduce(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
        if any(x.shape[a] == 0 for a in axes):
            return _of_nothing(x, axes, keep, largest)
        if x.dtype == torch.bool:
            x = x.to(torch.uint8)
            result: torch.Tensor = function(x, axes, keepdim=keep).to(torch.bool)
        else:
            result = function(x, axes, keepdim=keep)
        return result

    return reduce


def _of_nothing(x: torch.Tensor, axes: list[int], keep: bool, largest: bool) -> torch.Tensor:
    """Return the extreme of no values: the smallest number for a largest one, and the reverse."""
    if x.dtype == torch.bool:
        end: float | bool = not largest
    elif x.is_floating_point():
        end = -math.inf if largest else math.inf
    else:
        limits = torch.iinfo(x.dtype)
        end = limits.min if largest else limits.max
    shape = torch.sum(x, axes, keepdim=keep).shape
    return torch.full(shape, end, dtype=x.dtype, device=x.device)


RULES: dict[str, Reduction] = {
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "ReduceMax": _extreme(torch.amax, True),
    "ReduceMin": _extreme(torch.amin, False),
    "ReduceProd": _prod,
    "ReduceL1": _norm(1),
    "ReduceL2": _norm(2),
    "ReduceSumSquare": lambda x, axes, keep: _sum(x * x, axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}
# Result of a reduction over no axes.
EMPTY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceSumSquare": torch.square,
    "ReduceLogSum": torch.log,
}


def cumulate(call: Call) -> torch.Tensor:
    """Sums of all values up to each place."""
    return _cumulated(call, torch.cumsum)


def cumulated_product(call: Call) -> torch.Tensor:
    """Products of all values up to each place."""
    return _cumulated(call, torch.cumprod)


def _cumulated(call: Call, function: Callable[..., torch.Tensor]) -> torch.Tensor:
    x, axis = call.x(), int(call.value(1).number())
    if call.get("reverse", 0):
        x = x.flip(axis)
    y = function(x, axis, dtype=x.dtype)
    if call.get("exclusive", 0):
        start = torch.zeros_like if function is torch.cumsum else torch.ones_like
        none = y.shape[axis] == 0
        first = start(y.narrow(axis, 0, 1)) if not none else y
        y = y if none else torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if call.get("reverse", 0) else y


def arg_extreme(call: Call) -> torch.Tensor:
    """The place of the largest or smallest value."""
    function = torch.argmax if call.node.op_type == "ArgMax" else torch.argmin
    x, axis, keep = call.x(), call.get("axis", 0), bool(call.get("keepdims", 1))
    if not call.get("select_last_index", 0):
        return function(x, axis, keepdim=keep)
    place: torch.Tensor = x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)
    return place


def top_k(call: Call) -> list[torch.Tensor]:
    """The largest or smallest values of an axis and their places.

    Among equal values torch may choose other places than ONNX.
    """
    k = call.get("k") if call.get("k") is not None else call.value(1).number()
    largest, ordered = bool(call.get("largest", 1)), bool(call.get("sorted", 1))
    values, places = torch.topk(call.x(), k, call.get("axis", -1), largest, ordered)
    return [values, places]
