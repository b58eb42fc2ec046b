"""The Q/DQ pairs of an ONNX file: how many, of which layers, and what they round to."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from trtq.onnx_node import FP4_DYNAMIC
from trtq.onnx_walk import all_nodes, scopes


def quantized_nodes(model: onnx.ModelProto, *kinds: str) -> list[onnx.NodeProto]:
    """Return the nodes of these kinds whose first two operands come from pairs.

    Ops that only move values may be between. Nodes in branches are included.

    Args:
        model: any.
        kinds: op types, such as ``Conv``.
    """
    return [
        n
        for scope in scopes(model)
        for n in scope.graph.node
        if n.op_type in kinds
        and len(n.input) > 1
        and all(scope.pair(name) is not None for name in n.input[:2])
    ]


def count_qdq(model: onnx.ModelProto) -> int:
    """Return the number of quantized tensors, including those in branches; 0 for a float model.

    These are QuantizeLinear nodes, TensorRT's ops that make FP4, and stored codes of 4 bits. Stored
    codes of 8 bits, which have a DequantizeLinear alone, count in files that have nothing else.
    """
    nodes = list(all_nodes(model))
    quantizers = sum(n.op_type in MAKE_CODES for n in nodes)
    stored = (tensor.data_type for s in scopes(model) for tensor in s.graph.initializer)
    total = quantizers + sum(kind in FOUR_BITS for kind in stored)
    return total or sum(n.op_type == "DequantizeLinear" for n in nodes)


MAKE_CODES = ("QuantizeLinear", FP4_DYNAMIC)
FOUR_BITS = (onnx.TensorProto.INT4, onnx.TensorProto.FLOAT4E2M1)


def codes_of(model: onnx.ModelProto) -> str:
    """Return what the Q/DQ pairs round to: ``INT8``, ``FP8``, ``INT4``, ``NVFP4`` or several.

    Several are sorted and joined by ", ". UINT8 and wider integers count as INT8. Returns "" for a
    float model.
    """
    types = {name: tensor.data_type for s in scopes(model) for name, tensor in s.constants.items()}
    nodes = list(all_nodes(model))
    for node in nodes:
        if node.op_type == FP4_DYNAMIC:
            types[node.output[0]] = onnx.TensorProto.FLOAT4E2M1
    pairs = [n for n in nodes if n.op_type == "DequantizeLinear"]
    scales = {n.input[1] for n in pairs}  # those of NVFP4 are dequantized, too
    code_types = {_code_type(n, types) for n in pairs if n.output[0] not in scales}
    return ", ".join(sorted(CODE_NAMES.get(kind, "INT8") for kind in code_types))


CODE_NAMES: Mapping[int, str] = {
    onnx.TensorProto.FLOAT8E4M3FN: "FP8",
    onnx.TensorProto.INT4: "INT4",
    onnx.TensorProto.FLOAT4E2M1: "NVFP4",
}


def _code_type(dq: onnx.NodeProto, types: Mapping[str, int]) -> int:
    """Return the type of a pair's codes: that of its zero point, or of what is stored."""
    zero = dq.input[2] if len(dq.input) > 2 else ""
    kind = types.get(zero, types.get(dq.input[0], onnx.TensorProto.INT8))
    return kind if kind in CODE_NAMES else onnx.TensorProto.INT8
