"""Questions about a node of an FX graph or of an ONNX graph."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from trtq.ops.row import Op, Trait, op
from trtq.ops.table_layers import LAYERS
from trtq.ops.table_onnx import ONNX
from trtq.ops.table_pointwise import POINTWISE
from trtq.ops.table_shapes import SHAPES

if TYPE_CHECKING:
    import onnx
    from torch import fx

TABLE: tuple[Op, ...] = (*LAYERS, *POINTWISE, *SHAPES, *ONNX)
UNKNOWN = op("")
_BY_NAME = {row.name: row for row in TABLE}
_BY_FORM = {form: row for row in TABLE for form in row.aten}
_BY_ONNX = {kind: row for row in TABLE for kind in row.onnx}


@functools.cache
def form_of(target: object) -> str:
    """Return what a call of an FX graph calls, as the table writes it.

    >>> import operator
    >>> form_of(operator.getitem)
    'operator.getitem'
    """
    if hasattr(target, "_schema"):
        return str(target).removeprefix("aten.")
    return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', '')}".lstrip("_")


def of(node: fx.Node | onnx.NodeProto) -> Op:
    """Return the row of a node, :data:`UNKNOWN` for one that calls no operator of the table.

    A call whose flag makes it another operator has that one's row: ``convolution`` with
    ``transposed`` set is a ``conv_transpose``.
    """
    row = as_written(node)
    if row.becomes is not None and not hasattr(node, "op_type") and node.args[row.becomes[0]]:
        return _BY_NAME[row.becomes[1]]
    return row


def as_written(node: fx.Node | onnx.NodeProto) -> Op:
    """Return the row of the form that a node calls, regardless of its flags.

    :data:`UNKNOWN` for one that calls no operator of the table.
    """
    op_type = getattr(node, "op_type", None)
    if op_type is not None:
        return _BY_ONNX.get(op_type, UNKNOWN)
    return _BY_FORM.get(form_of(node.target), UNKNOWN) if node.op == "call_function" else UNKNOWN


def kind(node: fx.Node | onnx.NodeProto) -> str:
    """Return the family of a node's operator, "" where it is unknown."""
    return of(node).kind


def onnx_types(*kinds: str, trait: Trait | None = None) -> tuple[str, ...]:
    """Return the ONNX op types of these kinds, or of all rows with a trait, in table order.

    >>> onnx_types("conv", "linear", "matmul")
    ('Conv', 'Gemm', 'MatMul')
    """
    return tuple(t for row in TABLE if row.kind in kinds or trait in row.traits for t in row.onnx)


@functools.cache
def row_function(name: str, prefix: str) -> Callable[..., Any]:
    """Return a function that a row names: ``family.function``, or a full path from outside.

    Args:
        name: as the row has it.
        prefix: of the modules of families, such as ``trtq.export.write_``.
    """
    module, _, function = name.rpartition(".")
    path = module if "." in module else f"{prefix}{module}"
    implementation: Callable[..., Any] = getattr(importlib.import_module(path), function)
    return implementation
