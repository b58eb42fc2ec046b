"""Values of constants: stored ones, and those that a node computes from them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from trtq.onnx_node import integer
from trtq.ops.table_onnx import FLATTEN

LARGEST_FOLD = 1 << 28  # values
SMALL = 4096  # values of a constant that shape inference may need
BROKEN = ("LRN",)  # ONNX's evaluator computes the first channels only


def evaluate(
    node: onnx.NodeProto, given: dict[str, np.ndarray], opsets: dict[str, int]
) -> dict[str, np.ndarray]:
    """Evaluate one node on constants and return its outputs by name.

    Return an empty dict when ONNX's reference evaluator cannot compute them, or when a result
    would have more than :data:`LARGEST_FOLD` values.

    Args:
        node: without branches.
        given: values of all its operands, by name.
        opsets: of the model, by domain.
    """
    opset = min(opsets.get("", 0) or onnx.defs.onnx_opset_version(), onnx.defs.onnx_opset_version())
    if node.op_type in BROKEN:
        return {}
    if node.op_type in FLATTEN and opset < 13:
        return _flattened(node, given)
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in given.items()
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.output if n]
    graph = helper.make_graph([node], "fold", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    try:
        if _largest(model, given) > LARGEST_FOLD:
            return {}
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(None, given)
    except Exception:  # it has no such op, or not this form or these values: the tensor is unknown
        return {}
    pairs = zip((o.name for o in outputs), results, strict=True)
    return {name: np.asarray(value) for name, value in pairs}


def _flattened(node: onnx.NodeProto, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluate a node of old opsets, as ONNX's evaluator does not: along all axes from one on."""
    (name,) = node.input
    x = given[name]
    axis = integer(node, "axis", 1) % max(x.ndim, 1)
    rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    twin = helper.make_node(node.op_type, [name], node.output, axis=-1)
    results = evaluate(twin, {name: rows}, {"": 13})
    return {n: v.reshape(x.shape) for n, v in results.items()}


def _largest(model: onnx.ModelProto, given: Mapping[str, np.ndarray]) -> int:
    """Return how many values the largest result of a model has, 0 where no shape is known.

    A file of a few bytes can ask for terabytes: ConstantOfShape, Expand, Tile, Range.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    small = (numpy_helper.from_array(v, n) for n, v in given.items() if v.size <= SMALL)
    copy.graph.initializer.extend(small)
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    shapes = (o.type.tensor_type.shape.dim for o in inferred.output)
    return max((math.prod(d.dim_value for d in dims) for dims in shapes), default=0)


def constant_of(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """Return the tensor of a Constant node, named as the node's output.

    Returns:
        A copy. ``value_float`` and ``value_floats`` become float32, ``value_int`` and
        ``value_ints`` int64. None for strings and sparse tensors.
    """
    for a in node.attribute:
        if a.name == "value":
            tensor = onnx.TensorProto()
            tensor.CopyFrom(a.t)
            tensor.name = node.output[0]
            return tensor
        if a.name in ("value_float", "value_floats", "value_int", "value_ints"):
            kind = np.float32 if "float" in a.name else np.int64
            return numpy_helper.from_array(
                np.asarray(helper.get_attribute_value(a), dtype=kind), node.output[0]
            )
    return None


def array_of(tensor: onnx.TensorProto) -> np.ndarray | None:
    """Return a stored tensor as an array, None for text or a tensor without a type.

    Types that NumPy lacks (bfloat16, FP8, FP4, INT4) are dtypes of ``ml_dtypes``.
    """
    if tensor.data_type in (TensorProto.STRING, TensorProto.UNDEFINED):
        return None
    return np.asarray(numpy_helper.to_array(tensor))
