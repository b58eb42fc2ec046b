"""One ONNX node: its label, operands and attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, Protocol

import onnx

FP4_DYNAMIC = "TRT_FP4DynamicQuantize"  # TensorRT's op that makes FP4 codes and their scales
# Kinds of codes that are floats, by their type in a file.
FLOAT_CODES: Mapping[int, Literal["fp8", "fp4"]] = {
    onnx.TensorProto.FLOAT8E4M3FN: "fp8",
    onnx.TensorProto.FLOAT4E2M1: "fp4",
}


class Named(Protocol):
    """A value, tensor, node or function of ONNX."""

    name: str


def names_of(values: Iterable[Named]) -> set[str]:
    """Return the names of values, tensors or nodes."""
    return {v.name for v in values}


def label_of(node: onnx.NodeProto) -> str:
    """Return the name of a node, that of its first output where it has none."""
    return str(node.name or node.output[0])


def operand(node: onnx.NodeProto, place: int) -> str:
    """Return the name of an operand, "" where the node leaves it out.

    Args:
        node: any.
        place: of the operand, from 0 on.
    """
    return node.input[place] if place < len(node.input) else ""


def integer(node: onnx.NodeProto, name: str, default: int) -> int:
    """Return an integer attribute of a node.

    Args:
        node: any.
        name: of the attribute.
        default: where the node has no such attribute.
    """
    return next((int(a.i) for a in node.attribute if a.name == name), default)
