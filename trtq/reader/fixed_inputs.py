"""Inputs of an ONNX file that become constants, such as the sample rate of an audio model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from trtq.errors import UsageError, listed, suggest
from trtq.models.load import parse_value

SHOWN = 5


def fix_inputs_(graph: onnx.GraphProto, values: Mapping[str, Any], name: str) -> list[str]:
    """Turn inputs into constants, and return a note for each.

    Args:
        graph: whose inputs are taken away.
        values: number or boolean by name of the input; it fills the input's shape. A text is read
            as one.
        name: of the file, for messages.

    Raises:
        UsageError: no such input, the last one, one with open axes, or a value that its type does
            not hold.
    """
    return [_fix_(graph, key, value, name) for key, value in values.items()]


def _fix_(graph: onnx.GraphProto, key: str, value: Any, name: str) -> str:
    constants = {i.name for i in graph.initializer}
    names = [v.name for v in graph.input if v.name not in constants]
    what = f"Cannot use --model-arg {key}={value} with {name}"
    if key not in names:
        raise UsageError(
            what, f"it has no input {key}, but {listed(names, SHOWN)}", suggest(key, names)
        )
    if len(names) == 1:
        raise UsageError(what, f"{key} is its only input", "Leave it out")
    place = next(k for k, v in enumerate(graph.input) if v.name == key)
    kind = graph.input[place].type.tensor_type
    if any(not d.HasField("dim_value") for d in kind.shape.dim):
        raise UsageError(what, f"the input {key} has open axes, and a constant has none")
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    filled = np.full([d.dim_value for d in kind.shape.dim], _number(value, dtype, what), dtype)
    graph.initializer.append(numpy_helper.from_array(filled, key))
    del graph.input[place]
    return f"the input {key} is the constant {value} (--model-arg)"


def _number(value: Any, dtype: np.dtype[Any], what: str) -> int | float | bool:
    """Return a value that the type of an input holds.

    Raises:
        UsageError: the type does not hold it.
    """
    given: int | float | bool | str = parse_value(value) if isinstance(value, str) else value
    if not isinstance(given, str):
        with np.errstate(all="ignore"):
            is_exact = bool(np.asarray(given).astype(dtype) == given)
        if dtype.kind == "f" or is_exact:
            return given
    raise UsageError(what, f"{given!r} is no {dtype}", "Give a number that the input can hold")
