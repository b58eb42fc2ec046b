"""The shape of every tensor of an ONNX file, once the sizes of its inputs are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from trtq.errors import ArtifactError, first_line
from trtq.onnx_node import FP4_DYNAMIC, integer
from trtq.onnx_walk import Scope, declare_domains_, is_fixed
from trtq.quant.formats import FP4_BLOCK

FIXED = "Export it with a fixed image size"
MOST_SIZES = 64  # values of what a shape is computed from
ROUNDS = 32
FP4_TYPES = (onnx.TensorProto.FLOAT4E2M1, onnx.TensorProto.FLOAT8E4M3FN)


def with_shapes(
    model: onnx.ModelProto, path: str, sizes: Mapping[str, Sequence[int]]
) -> onnx.ModelProto:
    """Return a copy with the sizes of its inputs, a batch of one, and every shape inferred.

    Args:
        model: of any origin.
        path: for errors.
        sizes: of its inputs by name; without them only the batch may be open.

    Raises:
        ArtifactError: an open axis that nothing gives, or shapes that contradict each other.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    _fix_inputs_(copy, path, sizes)
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    del copy.graph.value_info[:]
    declare_domains_(copy)
    try:
        inferred = shape_inference.infer_shapes(copy, data_prop=True)
        for _ in range(ROUNDS):
            new_fp4_shapes = _infer_fp4_(copy, inferred)
            if not _compute_sizes_(copy, inferred) and not new_fp4_shapes:
                break
            inferred = shape_inference.infer_shapes(copy, data_prop=True)
    except shape_inference.InferenceError as exc:
        raise ArtifactError(f"Cannot count {path}", first_line(exc), FIXED) from exc
    return inferred


def dims_of(value: onnx.ValueInfoProto) -> list[int]:
    """Return the sizes of a tensor, 0 for those that are not known."""
    return [int(d.dim_value) for d in value.type.tensor_type.shape.dim]


def _fix_inputs_(model: onnx.ModelProto, path: str, sizes: Mapping[str, Sequence[int]]) -> None:
    """Give the open axes of inputs their sizes.

    Raises:
        ArtifactError: an axis other than the first is open, and nothing gives its size.
    """
    initializer_names = {i.name for i in model.graph.initializer}
    for value in model.graph.input:
        given = sizes.get(value.name)
        for axis, d in enumerate(value.type.tensor_type.shape.dim):
            if value.name in initializer_names or is_fixed(d):
                continue
            if given is None and axis > 0:
                raise ArtifactError(
                    f"Cannot count {path}", f"axis {axis} of its input {value.name} is open", FIXED
                )
            d.dim_value = 1 if given is None else given[axis]


def _infer_fp4_(model: onnx.ModelProto, inferred: onnx.ModelProto) -> bool:
    """Write the shapes of the codes and the block scales that TensorRT's FP4 op makes.

    Returns whether any was new.
    """
    known = {v.name: dims_of(v) for v in (*inferred.graph.input, *inferred.graph.value_info)}
    new = []
    for node in inferred.graph.node:
        dims = known.get(node.input[0], []) if node.op_type == FP4_DYNAMIC else []
        if not dims or node.output[0] in known:
            continue
        blocks = [*dims[:-1], -(-dims[-1] // integer(node, "block_size", FP4_BLOCK))]
        for name, kind, shape in zip(node.output, FP4_TYPES, (dims, blocks), strict=True):
            new.append(helper.make_tensor_value_info(name, kind, shape))
    model.graph.value_info.extend(new)
    return bool(new)


def _compute_sizes_(model: onnx.ModelProto, inferred: onnx.ModelProto) -> bool:
    """Replace what is computed from known shapes by constants where shapes are missing behind it.

    Returns whether anything was replaced.
    """
    values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    shapes = {v.name: dims_of(v) for v in values if v.type.tensor_type.HasField("shape")}
    known = {name for name, dims in shapes.items() if all(dims)}
    if all(o in known for n in inferred.graph.node for o in n.output if o):
        return False
    measured = [n for n in model.graph.node if n.op_type == "Shape" and n.input[0] in known]
    for node in measured:
        first, last = (_integer(node, name) for name in ("start", "end"))
        _make_constant_(node, np.array(shapes[node.input[0]][first:last], np.int64))
    scope = Scope(model.graph, {o.domain: o.version for o in model.opset_import})
    for node in model.graph.node if measured else ():
        array = scope.value(node.output[0]) if len(node.output) == 1 else None
        whole = array is not None and array.dtype.kind == "i" and array.size <= MOST_SIZES
        if array is not None and whole and node.op_type != "Constant":
            _make_constant_(node, array)
    return bool(measured)


def _integer(node: onnx.NodeProto, name: str) -> int | None:
    return next((int(a.i) for a in node.attribute if a.name == name), None)


def _make_constant_(node: onnx.NodeProto, array: np.ndarray) -> None:
    tensor = numpy_helper.from_array(array, f"{node.output[0]}/value")
    constant = helper.make_node("Constant", [], list(node.output), node.name, value=tensor)
    node.CopyFrom(constant)
