"""NVFP4 in ops that ONNX Runtime has: what it computes from a file is then what an engine does.

Codes that are stored become the float32 values that they stand for, and TensorRT's op that makes
an activation's codes becomes the arithmetic of its definition.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from trtq.onnx_node import FP4_DYNAMIC, integer
from trtq.quant.formats import FP4_BLOCK, FP4_LARGEST, FP8_LARGEST

FP4 = TensorProto.FLOAT4E2M1


def holds_fp4(model: onnx.ModelProto) -> bool:
    """Whether a file has NVFP4 codes, stored or made as it runs."""
    return any(i.data_type == FP4 for i in model.graph.initializer) or any(
        n.op_type == FP4_DYNAMIC for n in model.graph.node
    )


def without_fp4(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model that computes the same with float32 values in place of FP4 codes.

    Names of tensors remain. It is the model itself where there are no such codes.

    Args:
        model: as trtq writes NVFP4: scales of blocks of 16 are E4M3 numbers times one float32 unit;
            not changed.
    """
    if not holds_fp4(model):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    nodes = list(_nodes(graph))
    read = {name for n in nodes for name in n.input}
    kept = [i for i in graph.initializer if i.name in read]
    del graph.node[:]
    del graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *_constants()])
    return result


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph with those of FP4 replaced."""
    initializers = {i.name: i for i in graph.initializer}
    scaled, dynamic = dict[str, np.ndarray](), dict[str, onnx.NodeProto]()
    for node in graph.node:
        if node.op_type == FP4_DYNAMIC:
            dynamic |= dict.fromkeys(node.output, node)
        elif node.op_type != "DequantizeLinear":
            yield node
        elif node.input[0] in dynamic:
            yield from _made(node, dynamic[node.input[0]])
        elif node.input[0] in initializers and _is_scale(initializers, node):
            scaled[node.output[0]] = _value(initializers, node.input[0]) * _value(
                initializers, node.input[1]
            )
        elif node.input[0] in initializers and initializers[node.input[0]].data_type == FP4:
            scale = scaled.get(node.input[1])
            yield _stored(
                node, initializers, _value(initializers, node.input[1]) if scale is None else scale
            )
        else:
            yield node


def _is_scale(initializers: dict[str, onnx.TensorProto], node: onnx.NodeProto) -> bool:
    """Whether a node makes the scales of stored blocks."""
    stored = initializers[node.input[0]].data_type == TensorProto.FLOAT8E4M3FN
    return stored and node.input[1] in initializers and not initializers[node.input[1]].dims


def _value(initializers: dict[str, onnx.TensorProto], name: str) -> np.ndarray:
    value: np.ndarray = numpy_helper.to_array(initializers[name]).astype(np.float32)
    return value


def _stored(
    node: onnx.NodeProto, initializers: dict[str, onnx.TensorProto], scale: np.ndarray
) -> onnx.NodeProto:
    """Return a constant in place of a DequantizeLinear of stored codes."""
    axis, size = integer(node, "axis", 1), integer(node, "block_size", 0)
    steps = np.repeat(scale, size, axis=axis) if size else scale
    values = _value(initializers, node.input[0]) * steps
    constant = helper.make_node(
        "Constant", [], [node.output[0]], name=node.name, value=numpy_helper.from_array(values)
    )
    constant.metadata_props.extend(node.metadata_props)
    return constant


NUMBERS = {"six": FP4_LARGEST, "top": FP8_LARGEST, "one": 1, "two": 2, "four": 4, "half": 0.5}
SIZES = {"blocks": [-1, FP4_BLOCK], "last": [-1]}


def _name(constant: str) -> str:
    return f"trtq/fp4/{constant}"


def _constants() -> list[onnx.TensorProto]:
    """Return the constants of the arithmetic."""
    arrays = {k: np.asarray(v, np.float32) for k, v in NUMBERS.items()}
    arrays |= {k: np.asarray(v, np.int64) for k, v in SIZES.items()}
    return [numpy_helper.from_array(v, _name(k)) for k, v in arrays.items()]


def _made(node: onnx.NodeProto, maker: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Return the arithmetic of an activation, in place of the DequantizeLinear of its codes.

    Rows are cut into blocks of 16. The scale of a block is the E4M3 number nearest to its largest
    magnitude / 6 / unit, times unit; its values are the nearest E2M1 numbers times that.
    """
    if node.input[0] != maker.output[0]:
        return []  # the DequantizeLinear of the scales
    ops = _Ops(node.output[0])
    x, unit = maker.input
    blocks = ops.add("Reshape", x, _name("blocks"))
    largest = ops.add("ReduceMax", ops.add("Abs", blocks), _name("last"), keepdims=1)
    ratio = ops.add("Div", largest, ops.add("Mul", unit, _name("six")))
    code = ops.add("Cast", ops.add("Min", ratio, _name("top")), to=TensorProto.FLOAT8E4M3FN)
    scale = ops.add("Mul", ops.add("Cast", code, to=TensorProto.FLOAT), unit)
    divisor = ops.add("Where", ops.add("Cast", scale, to=TensorProto.BOOL), scale, _name("one"))
    value = ops.add("Div", blocks, divisor)
    size = ops.add("Min", ops.add("Abs", value), _name("six"))
    coarse = ops.add("Where", ops.add("Less", size, _name("four")), _name("one"), _name("two"))
    step = ops.add("Where", ops.add("Less", size, _name("two")), _name("half"), coarse)
    rounded = ops.add("Mul", ops.add("Round", ops.add("Div", size, step)), step)
    signed = ops.add("Mul", ops.add("Mul", rounded, ops.add("Sign", value)), scale)
    ops.add("Reshape", signed, ops.add("Shape", x))
    ops.nodes[-1].output[0] = node.output[0]
    ops.nodes[-1].metadata_props.extend(node.metadata_props)
    return ops.nodes


class _Ops:
    """Nodes whose names start with that of a tensor."""

    def __init__(self, prefix: str) -> None:
        self.prefix, self.nodes = prefix, list[onnx.NodeProto]()

    def add(self, kind: str, *inputs: str, **attributes: int) -> str:
        """Append a node and return the name of its output."""
        name = f"{self.prefix}/{kind}_{len(self.nodes)}"
        node = helper.make_node(kind, inputs, [name], name=name)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        self.nodes.append(node)
        return name
