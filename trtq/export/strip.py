"""The float model back from a Q/DQ model: for hardware without INT8 arithmetic, where a Q/DQ graph does not build at all."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper


def strip_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` without its Q/DQ pairs; weights are what went into their pair, or the values of codes that were stored."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    quantized = {n.output[0]: n for n in graph.node if n.op_type == "QuantizeLinear"}
    constants = {i.name: i for i in graph.initializer}
    instead: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            continue
        if node.op_type != "DequantizeLinear":
            kept.append(node)
        elif node.input[0] in quantized:
            instead[node.output[0]] = quantized[node.input[0]].input[0]
        elif node.input[0] in constants:  # stored as codes
            values = _values(constants[node.input[0]], constants[node.input[1]], node)
            graph.initializer.append(numpy_helper.from_array(values, node.output[0]))
        else:
            kept.append(node)
    for node in kept:
        for i in range(len(node.input)):
            while node.input[i] in instead:
                node.input[i] = instead[node.input[i]]
    for output in graph.output:
        if output.name in instead:
            kept.append(onnx.helper.make_node("Identity", [instead[output.name]], [output.name]))
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for n in kept for name in n.input}
    left = [i for i in graph.initializer if i.name in read]
    del graph.initializer[:]
    graph.initializer.extend(left)
    known = read | {o.name for o in graph.output}
    shapes = [v for v in graph.value_info if v.name in known]
    del graph.value_info[:]
    graph.value_info.extend(shapes)
    return result


def _values(codes: onnx.TensorProto, scale: onnx.TensorProto, node: onnx.NodeProto) -> np.ndarray:
    held, step = numpy_helper.to_array(codes).astype(np.float32), numpy_helper.to_array(scale).astype(np.float32)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [-1 if d == axis % held.ndim else 1 for d in range(held.ndim)] if step.ndim else []
    return held * (step.reshape(shape) if shape else step)
