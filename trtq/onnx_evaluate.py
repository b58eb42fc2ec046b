"""Evaluate one ONNX node on constants, by ONNX's reference evaluator."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

LARGEST = 1 << 28  # values of the operands together, and of each result
SMALL = 4096  # values of an operand that the size of a result may depend on
# What ONNX's reference raises where it has no such op, or not this form of it.
REFUSALS = (
    RuntimeError,
    NotImplementedError,
    ValueError,
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
)


def evaluate(
    node: onnx.NodeProto, given: Mapping[str, np.ndarray], opsets: Mapping[str, int]
) -> dict[str, np.ndarray]:
    """Evaluate one node on constants.

    Args:
        node: of ONNX's own domain, without graphs inside.
        given: value of each operand, by name.
        opsets: of the model, by domain; "" is ONNX's own.

    Returns:
        Its outputs by name; nothing where ONNX's reference evaluator cannot compute them, or where
        one would have more than ``LARGEST`` values, such as those of a ConstantOfShape.
    """
    newest = onnx.defs.onnx_opset_version()
    opset = min(opsets.get("") or newest, newest)
    small = {n for n, v in given.items() if v.size <= SMALL}
    names = [n for n in node.output if n]
    try:
        if not _is_small(_model(node, given, opset, small)):
            return {}
        results = ReferenceEvaluator(_model(node, given, opset, set())).run(None, dict(given))
    except REFUSALS:
        return {}
    return {name: np.asarray(value) for name, value in zip(names, results, strict=True)}


def _model(
    node: onnx.NodeProto, given: Mapping[str, np.ndarray], opset: int, stored: set[str]
) -> onnx.ModelProto:
    """Return a model of one node; operands in ``stored`` are constants, the others inputs."""
    inputs = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for n, v in given.items()
        if n not in stored
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.output if n]
    constants = [numpy_helper.from_array(given[n], n) for n in stored]
    graph = helper.make_graph([node], "fold", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def _is_small(model: onnx.ModelProto) -> bool:
    """Whether each result has at most ``LARGEST`` values, as far as ONNX's inference knows."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return True
    shapes = [o.type.tensor_type.shape.dim for o in inferred.graph.output]
    return all(math.prod(d.dim_value for d in dims) <= LARGEST for dims in shapes)
