"""A node as a model of its own, for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import helper, numpy_helper

from trtq.graph.opaque import TYPES
from trtq.onnx_walk import read_by
from trtq.reader.call import Call
from trtq.reader.values import LARGEST_HOST, UnreadError


def opaque_model(call: Call, domains: Mapping[str, int]) -> tuple[onnx.ModelProto, list[int]]:
    """Return a model of the node alone, and which operands are its inputs.

    Small constants are part of the model: shape inference reads them.
    """
    node = onnx.NodeProto()
    node.CopyFrom(call.node)
    inputs, initializers, places = [], [], []
    for i, value in enumerate(call.given):
        if value is None:
            node.input[i] = ""
            continue
        node.input[i] = f"x{i}"
        if value.host is not None and value.tensor is not None and value.host.size <= LARGEST_HOST:
            array = (
                value.tensor.detach().cpu().numpy() if value.host.dtype == object else value.host
            )
            initializers.append(numpy_helper.from_array(array, f"x{i}"))
            continue
        tensor = call.x(i)
        if tensor.dtype not in TYPES:
            raise UnreadError(f"an operand of {tensor.dtype}")
        rank = [None] * tensor.ndim
        inputs.append(helper.make_tensor_value_info(f"x{i}", TYPES[tensor.dtype], rank))
        places.append(i)
    outer = [n for n in read_by(node) if n not in node.input and n]
    if outer and any(a.HasField("g") for a in node.attribute):
        raise UnreadError("a branch that reads tensors around it")
    outputs = [onnx.ValueInfoProto(name=o) for o in node.output if o]
    graph = helper.make_graph([node], "node", inputs, outputs, initializers)
    opsets = [helper.make_opsetid(d, v) for d, v in sorted(domains.items())]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10), places
