"""A strongly typed FP16 graph from a float32 one: weights and activations in half, inputs, outputs and Q/DQ in float32."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtq.errors import ExportError
from trtq.export.onnx_file import QDQ

HALF_MAX = 65504.0
# Operands that the ONNX standard wants in float32 whatever the data type: scales and regions of interest of Resize.
FLOAT_OPERANDS = {"Resize": (1, 2), "Upsample": (1,)}


def convert_to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` with FP16 weights and computation.

    Inputs and outputs stay float32. Each Q/DQ pair stays float32 between two casts, so that its scale is the calibrated number
    to the last bit; TensorRT fuses the casts into the INT8 kernels around them.

    Raises:
        ExportError: a weight does not fit FP16; names it.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    keep = _float_operands(graph)
    half_names: dict[str, str] = {}
    extra: list[onnx.TensorProto] = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        half = _to_half(tensor)
        if tensor.name not in keep:
            tensor.CopyFrom(half)
        elif keep[tensor.name]:  # some consumers want float32, others half: both exist
            half.name = half_names[tensor.name] = f"{tensor.name}_fp16"
            extra.append(half)
    graph.initializer.extend(extra)
    floats = {i.name for i in graph.input if i.type.tensor_type.elem_type == TensorProto.FLOAT}
    floats |= {i.name for i in graph.initializer if i.data_type == TensorProto.FLOAT}
    _retype(graph, floats, half_names)
    del graph.value_info[:]
    return result


def _float_operands(graph: onnx.GraphProto) -> dict[str, bool]:
    """Return the names that some node reads as float32, and whether another node reads them, too."""
    wanted: set[str] = set()
    other: set[str] = set()
    for node in graph.node:
        for i, name in enumerate(node.input):
            in_float = node.op_type in QDQ or i in FLOAT_OPERANDS.get(node.op_type, ())
            (wanted if in_float else other).add(name)
    return {name: name in other for name in wanted}


def _to_half(tensor: onnx.TensorProto) -> onnx.TensorProto:
    array = numpy_helper.to_array(tensor)
    largest = float(np.abs(array[np.isfinite(array)]).max(initial=0.0))
    if largest > HALF_MAX:
        raise ExportError(
            f"The weight {tensor.name} does not fit FP16", f"its largest value is {largest:.4g}, FP16 ends at {HALF_MAX:g}",
            "Build with --precision fp32",
        )  # fmt: skip
    return numpy_helper.from_array(array.astype(np.float16), tensor.name)


def _retype(graph: onnx.GraphProto, floats: set[str], half_names: dict[str, str]) -> None:
    """Rewrite the node list so that each node reads the type it needs; ``floats`` grows with what is float32."""
    nodes: list[onnx.NodeProto] = []
    halves: dict[str, str] = {}
    back: dict[str, str] = {}
    outputs = {o.name for o in graph.output if o.type.tensor_type.elem_type == TensorProto.FLOAT}
    known_half = {i.name for i in graph.initializer if i.data_type == TensorProto.FLOAT16}

    def cast(name: str, to: int, suffix: str) -> str:
        new = f"{name}_{suffix}"
        nodes.append(helper.make_node("Cast", [name], [new], name=f"{new}/Cast", to=to))
        return new

    for node in graph.node:
        for i, name in enumerate(node.input):
            if node.op_type in QDQ or i in FLOAT_OPERANDS.get(node.op_type, ()):
                if name in known_half:
                    back[name] = back.get(name) or cast(name, TensorProto.FLOAT, "fp32")
                    node.input[i] = back[name]
            elif name in half_names:
                node.input[i] = half_names[name]
            elif name in floats:
                halves[name] = halves.get(name) or cast(name, TensorProto.FLOAT16, "fp16")
                node.input[i] = halves[name]
        if node.op_type == "DequantizeLinear":
            floats.add(node.output[0])
        elif node.op_type == "Cast":
            attribute = next(a for a in node.attribute if a.name == "to")
            if attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.FLOAT16
            if attribute.i == TensorProto.FLOAT16:
                known_half.add(node.output[0])
        else:
            _constants_to_half(node)
            known_half.update(n for n in node.output if _may_be_half(node, known_half, halves, half_names))
        for i, name in enumerate(node.output):
            if name in outputs and name in known_half:
                node.output[i] = f"{name}_fp16"
        nodes.append(node)
    for name in outputs:
        if name in known_half:
            nodes.append(helper.make_node("Cast", [f"{name}_fp16"], [name], name=f"{name}/Cast", to=TensorProto.FLOAT))
    _rename_reads(nodes, {n: f"{n}_fp16" for n in outputs if n in known_half})
    del graph.node[:]
    graph.node.extend(nodes)


def _rename_reads(nodes: list[onnx.NodeProto], renamed: dict[str, str]) -> None:
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in renamed:
                node.input[i] = renamed[name]


def _may_be_half(node: onnx.NodeProto, known: set[str], halves: dict[str, str], half_names: dict[str, str]) -> bool:
    """Whether the data a node passes on is FP16: some operand is, and the op returns the type of its data."""
    if node.op_type in ("Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "Less", "QuantizeLinear", "Not", "And", "IsNaN"):
        return False
    made = set(halves.values()) | set(half_names.values())
    if node.op_type in ("Constant", "ConstantOfShape"):
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        return value is not None and value.data_type == TensorProto.FLOAT16
    return any(n in known or n in made for n in node.input)


def _constants_to_half(node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "value" and attribute.t.data_type == TensorProto.FLOAT:
            attribute.t.CopyFrom(_to_half(attribute.t))
