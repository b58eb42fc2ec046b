"""Arithmetic on numbers that are known while torch traces: sizes and what follows from them."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from trtq.reader.call import Call
from trtq.reader.values import LARGEST_HOST, TORCH_TYPES, Array, UnreadError, Value
from trtq.typed import present

Compute = Callable[[Call], "Value | list[Value]"]


def on_numbers(call: Call) -> Value | list[Value] | None:
    """Return the result of a node whose operands are all numbers, None where it needs tensors.

    Args:
        call: its numbers may be symbolic sizes.

    Raises:
        UnreadError: a form that no rule reads.
        NotImplementedError: the result must be a tensor: it is large, or has a symbolic size.
    """
    compute = HOST.get(call.node.op_type)
    given = present(call.given)
    if compute is None or not given or any(v.host is None for v in given):
        return None
    return compute(call)


def _elementwise(function: Callable[..., Any], dtype: torch.dtype | None = None) -> Compute:
    """Return the rule of an operator that computes each number from those at its place."""

    def compute(call: Call) -> Value:
        operands = [call.value(i).known() for i in range(len(call))]
        result = np.frompyfunc(function, len(operands), 1)(*operands)
        return Value.numbers(result, dtype or call.value(len(call) - 1).dtype)

    return compute


def _remainder(call: Call) -> Value | list[Value]:
    """Return the remainder: of the sign of b, with ``fmod`` of the sign of a."""
    return _elementwise(_rest if call.get("fmod", 0) else operator.mod)(call)


def _rest(a: Any, b: Any) -> Any:
    return a - b * _whole_quotient(a, b)


def _divide(call: Call) -> Value:
    """Divide as ONNX does: integers are cut off towards zero."""
    dtype = call.value(0).dtype
    function = operator.truediv if dtype.is_floating_point else _whole_quotient
    result = np.frompyfunc(function, 2, 1)(call.value(0).known(), call.value(1).known())
    return Value.numbers(result, dtype)


def _whole_quotient(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return -(-a // b) if (a < 0) != (b < 0) else a // b
    return a // b  # sizes are not below 0


def _rounded(function: Callable[[Any], Any]) -> Compute:
    """Return the rule of a rounding; whole numbers are not changed."""

    def change(number: Any) -> Any:
        return number if isinstance(number, (int, torch.SymInt)) else function(number)

    return _elementwise(change)


def _fold(function: Callable[[Any, Any], Any]) -> Compute:
    """Return the rule of an operator with any number of operands."""

    def compute(call: Call) -> Value:
        result = call.value(0).known()
        for i in range(1, len(call)):
            result = np.frompyfunc(function, 2, 1)(result, call.value(i).known())
        return Value.numbers(result, call.value(0).dtype)

    return compute


def _cast(call: Call) -> Value:
    to = TORCH_TYPES.get(call.get("to"))
    if to is None:
        raise UnreadError("a cast to a type that torch does not have")
    change = _number_as(to)
    return Value.numbers(np.frompyfunc(change, 1, 1)(call.value(0).known()), to)


def _number_as(to: torch.dtype) -> Callable[[Any], Any]:
    """Return the cast of a number to a type; symbolic sizes remain whole and therefore short.

    Floats computed from them are then the same, but for roundings of float32.
    """
    if to.is_floating_point:
        return lambda v: v if isinstance(v, (torch.SymInt, torch.SymFloat)) else float(v)
    if to == torch.bool:
        return bool
    return lambda v: v if isinstance(v, torch.SymInt) else torch.sym_int(v)


def _moved(change: Callable[[Call, Array], Any]) -> Compute:
    """Return the rule of an operator that only moves or picks numbers."""

    def compute(call: Call) -> Value:
        source = call.value(0)
        return Value.numbers(change(call, source.known()), source.dtype)

    return compute


def _plain(sizes: Sequence[Any]) -> list[int]:
    """Return sizes that are known; with an open one among them the result is a tensor."""
    if not all(isinstance(s, int) for s in sizes):
        raise NotImplementedError
    return list(sizes)


def _gather(call: Call, numbers: Array) -> Any:
    places = call.value(1)
    index = np.asarray(_plain(places.ints()), np.int64).reshape(places.shape)
    return np.take(numbers, index, axis=call.get("axis", 0))


def _concat(call: Call) -> Value:
    parts = [call.value(i).known() for i in range(len(call))]
    return Value.numbers(np.concatenate(parts, axis=call.get("axis", 1)), call.value(0).dtype)


def _slice(call: Call, numbers: Array) -> Any:
    from trtq.reader.read_shapes import slices_of

    index: list[slice] = [slice(None)] * numbers.ndim
    for axis, *bounds in slices_of(call, numbers.ndim):
        start, end, step = _plain(bounds)
        start = max(start, -numbers.shape[axis]) if step < 0 else start
        index[axis] = slice(start, None if step < 0 and end < -numbers.shape[axis] else end, step)
    return numbers[tuple(index)]


def _reshape(call: Call, numbers: Array) -> Any:
    shape = _plain(call.ints(1) or [])
    return numbers.reshape([numbers.shape[i] if s == 0 else s for i, s in enumerate(shape)])


def _squeeze(call: Call, numbers: Array) -> Any:
    axes = call.axes()
    return numbers.squeeze(None if axes is None else tuple(axes))


def _unsqueeze(call: Call, numbers: Array) -> Any:
    return np.expand_dims(numbers, tuple(call.axes() or ()))


def _split(call: Call) -> list[Value]:
    """Cut numbers by sizes, or into as many equal parts as there are results."""
    source = call.value(0)
    numbers, axis = source.known(), call.get("axis", 0)
    sizes = call.axes(name="split")
    if sizes is None:  # the last piece is the smaller one
        pieces = len(call.node.output)
        sizes = [-(-numbers.shape[axis] // pieces)] * pieces
    places: Any = list(np.cumsum(_plain(sizes))[:-1])
    return [Value.numbers(p, source.dtype) for p in np.array_split(numbers, places, axis=axis)]


def _reduce(function: Callable[[Any, Any], Any]) -> Compute:
    def compute(call: Call) -> Value:
        source, axes = call.value(0), call.axes()
        numbers = source.known()
        if numbers.ndim != 1 or axes not in (None, [0], [-1]):
            raise UnreadError("a reduction of a table of sizes")
        if not numbers.size:
            raise NotImplementedError  # tensors have rules for nothing
        result = functools.reduce(function, numbers)
        return Value.numbers([result] if call.get("keepdims", 1) else result, source.dtype)

    return compute


def _fill(call: Call) -> Value:
    shape = _plain(call.ints(0) or [])
    if math.prod(shape) > LARGEST_HOST:
        raise NotImplementedError  # a tensor
    tensor = call.get("value")
    from onnx import numpy_helper

    value = numpy_helper.to_array(tensor).reshape(-1)[0] if tensor is not None else np.float32(0)
    dtype = torch.from_numpy(np.asarray(value).reshape(1)).dtype
    return Value.numbers(np.full(shape, value.item(), dtype=object), dtype)


def _range(call: Call) -> Value:
    start, stop, step = (call.value(i).number() for i in range(3))
    if not all(isinstance(v, (int, float)) for v in (start, stop, step)):
        raise NotImplementedError  # a tensor
    if abs(stop - start) > LARGEST_HOST * abs(step):  # a step of 0 never arrives
        raise NotImplementedError  # a tensor
    return Value.numbers(list(np.arange(start, stop, step).tolist()), call.value(0).dtype)


def _expand(call: Call, numbers: Array) -> Any:
    shape = np.broadcast_shapes(numbers.shape, tuple(_plain(call.ints(1) or [])))
    if math.prod(shape) > LARGEST_HOST:
        raise NotImplementedError  # a tensor
    return np.broadcast_to(numbers, shape)


def _choose(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


HOST: dict[str, Compute] = {
    "Add": _elementwise(operator.add),
    "Sub": _elementwise(operator.sub),
    "Mul": _elementwise(operator.mul),
    "Div": _divide,
    "Mod": _remainder,
    "Neg": _elementwise(operator.neg),
    "Abs": _elementwise(abs),
    "Floor": _rounded(math.floor),
    "Ceil": _rounded(math.ceil),
    "Sqrt": _elementwise(torch.sym_sqrt),
    "Equal": _elementwise(operator.eq, torch.bool),
    "Less": _elementwise(operator.lt, torch.bool),
    "Greater": _elementwise(operator.gt, torch.bool),
    "LessOrEqual": _elementwise(operator.le, torch.bool),
    "GreaterOrEqual": _elementwise(operator.ge, torch.bool),
    "Not": _elementwise(lambda v: not v, torch.bool),
    "And": _elementwise(lambda a, b: a and b, torch.bool),
    "Or": _elementwise(lambda a, b: a or b, torch.bool),
    "Where": _elementwise(_choose),
    "Max": _fold(torch.sym_max),
    "Min": _fold(torch.sym_min),
    "Cast": _cast,
    "Identity": _elementwise(lambda v: v),
    "Gather": _moved(_gather),
    "Concat": _concat,
    "Slice": _moved(_slice),
    "Reshape": _moved(_reshape),
    "Squeeze": _moved(_squeeze),
    "Unsqueeze": _moved(_unsqueeze),
    "Split": _split,
    "Expand": _moved(_expand),
    "ReduceProd": _reduce(operator.mul),
    "ReduceSum": _reduce(operator.add),
    "ReduceMax": _reduce(torch.sym_max),
    "ReduceMin": _reduce(torch.sym_min),
    "ConstantOfShape": _fill,
    "Range": _range,
}
