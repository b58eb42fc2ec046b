"""Q/DQ pairs that also are the activation in front of them.

A pair of unsigned codes from 0 makes negative values 0. Quantizers such as ONNX Runtime's therefore
remove the ReLU or ReLU6 in front of it. Without the pair the activation must be restored.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import helper

from trtq.export.lint_view import View, add_named, claimed
from trtq.onnx_constants import array_of
from trtq.onnx_node import label_of
from trtq.ops.signs import NON_NEGATIVE, OF_ALL, OF_FIRST

CLAMP = "/activation"  # behind the name of a pair, the name of its activation
SIX = 6.0  # of ReLU6, when a range ends there
# Lowest and highest code of what a pair may have.
CODES = {"int8": (-128, 127), "uint8": (0, 255), "int4": (-8, 7), "uint4": (0, 15)}


def clamps_of(view: View) -> Mapping[str, float]:
    """Return the largest value of each pair that makes negative values 0, by its codes.

    Pairs behind values that are never negative are left out. It is 6 where the range ends there,
    else infinity: the end of another range is the calibration's.
    """
    limits = {}
    for node in view.nodes("QuantizeLinear"):
        zero, scale = view.zero_point(node), view.value(node.input[1])
        if scale is None or scale.size != 1 or not _starts_at_zero(zero):
            continue
        if _may_be_negative(view, node.input[0]):
            assert zero is not None
            steps = CODES[zero.dtype.name][1] - int(zero.reshape(-1)[0])
            largest = float(scale.reshape(-1)[0]) * steps
            limits[node.output[0]] = SIX if abs(largest - SIX) <= SIX * 1e-3 else np.inf
    return limits


def clamp_(view: View, node: onnx.NodeProto, largest: float) -> str:
    """Put the activation of a pair in front of its QuantizeLinear, once; return what it gives.

    Args:
        view: its graph gets the node.
        node: the QuantizeLinear, which still reads what the activation reads.
        largest: 6 for a ReLU6, infinity for a ReLU.
    """
    source, name = node.input[0], f"{label_of(node)}{CLAMP}"
    if name in view.added:
        return view.added[name]
    result = claimed(view, name)
    if not np.isfinite(largest):
        activation = helper.make_node("Relu", [source], [result], name=name)
    elif view.scope.opsets.get("", 0) < 11:
        activation = helper.make_node("Clip", [source], [result], name=name, min=0.0, max=largest)
    else:
        scale = view.value(node.input[1])
        assert scale is not None
        bounds = [
            add_named(view, f"{CLAMP[1:]}/{end:g}", np.asarray(end, scale.dtype))
            for end in (0.0, largest)
        ]
        activation = helper.make_node("Clip", [source, *bounds], [result], name=name)
    view.graph.node.insert(list(view.graph.node).index(node), activation)
    return result


def _starts_at_zero(zero: np.ndarray | None) -> bool:
    """Whether the lowest code stands for 0."""
    if zero is None or zero.size != 1 or zero.dtype.name not in CODES:
        return False
    return int(zero.reshape(-1)[0]) == CODES[zero.dtype.name][0]


def _may_be_negative(view: View, name: str) -> bool:
    """Whether a computed tensor may have negative values; an input is what its samples are.

    Every tensor that it depends on is looked at once.
    """
    seen, left = set[str](), [name]
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        node = view.scope.maker(name) if view.scope.constant(name) is None else None
        if node is not None and node.op_type in OF_ALL:
            left += node.input
        elif node is not None and node.op_type in OF_FIRST:
            left.append(node.input[0])
        elif _gives_negative(view, name, node):
            return True
    return False


def _gives_negative(view: View, name: str, node: onnx.NodeProto | None) -> bool:
    """Whether a constant, or a node by itself, gives negative values.

    Args:
        view: of the graph.
        name: of the tensor.
        node: that makes it; None for a constant and an input.
    """
    if node is None:
        constant = view.scope.constant(name)
        values = None if constant is None else array_of(constant)
        return values is not None and bool((values.astype(np.float32) < 0).any())
    if node.op_type == "DequantizeLinear":
        return not _starts_at_zero(view.zero_point(node))
    if node.op_type == "Clip":
        low = view.value(node.input[1]) if len(node.input) > 1 and node.input[1] else None
        given = next((a.f for a in node.attribute if a.name == "min"), -np.inf)
        return bool((given if low is None else low.min()) < 0)
    return node.op_type not in NON_NEGATIVE
