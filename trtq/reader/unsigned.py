"""Unsigned integers of more than 8 bits, with which torch does not compute."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from trtq.errors import ModelError
from trtq.onnx_node import integer, label_of
from trtq.reader.values import Array

UNSIGNED = (TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64)
HINT = "Export it with signed integers (INT64)"


def sign_(graph: onnx.GraphProto, constants: dict[str, Array], file: str) -> str:
    """Make unsigned constants INT64 and return a note about them; "" where there are none.

    Args:
        graph: nodes that are not folded.
        constants: by name; they are replaced.
        file: name of the file, for messages.

    Raises:
        ModelError: a value is too large for INT64, or a node makes such integers.
    """
    for node in graph.node:
        code = integer(node, "to", 0) if node.op_type == "Cast" else 0
        if code in UNSIGNED:
            kind = TensorProto.DataType.Name(code)
            why = f"{label_of(node)} (Cast) makes {kind}, with which torch does not compute"
            raise ModelError(f"Cannot read the ONNX file {file}", why, HINT)
    changed = {n: v for n, v in constants.items() if v.dtype.kind == "u" and v.dtype.itemsize > 1}
    for name, value in changed.items():
        if value.size and int(value.max()) > np.iinfo(np.int64).max:
            why = f"the constant {name!r} has {int(value.max())}, which is too large for INT64"
            raise ModelError(f"Cannot read the ONNX file {file}", why, HINT)
        constants[name] = value.astype(np.int64)
    if not changed:
        return ""
    kinds = " and ".join(sorted({v.dtype.name.upper() for v in changed.values()}))
    return f"the constants of the file that are {kinds} are read as INT64: {', '.join(changed)}"
