"""Rules for stored codes that TensorRT refuses: INT32 biases, weights without a QuantizeLinear."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import helper

from trtq.export.lint_view import (
    Finding,
    View,
    add_named,
    dequantized,
    in_blocks,
    named,
    replace_node_,
)
from trtq.onnx_node import label_of
from trtq.onnx_walk import axis_of
from trtq.platform.releases import releases


def int32_bias(view: View) -> Iterator[Finding]:
    """L09: INT32 bias with a DequantizeLinear."""
    for node in _int32(view):
        why = "an INT32 bias with a DequantizeLinear, which every TensorRT rejects"
        mend = "Keep biases in float (QuantizeBias=False)"
        yield Finding(
            rule="L09",
            severity="error",
            where=named(node),
            why=why,
            mend=mend,
            repairable=readable(view, node),
        )


def _int32(view: View) -> list[onnx.NodeProto]:
    return [n for n in view.nodes("DequantizeLinear") if _stored_as(view, n) == np.int32]


def _stored_as(view: View, node: onnx.NodeProto) -> np.dtype | None:
    """Return the type of the codes that a DequantizeLinear reads from constants.

    Returns None for computed codes.
    """
    codes = view.value(node.input[0])
    return codes.dtype if codes is not None else None


def readable(view: View, node: onnx.NodeProto) -> bool:
    """Whether the values of stored codes can be written as a constant."""
    return not in_blocks(node) and view.value(node.input[1]) is not None


def fix_int32_bias(view: View) -> int:
    """Repair L09 and return at how many places."""
    nodes = [n for n in _int32(view) if readable(view, n)]
    for node in nodes:
        replace_node_(view, node, dequantized(view, node))
    return len(nodes)


def stored_weights(view: View) -> Iterator[Finding]:
    """L10: stored INT8 weights before TensorRT 10."""
    feature = "stored INT8 weights"
    if not view.reader.runtime.lacks(feature):
        return
    span = releases().features[feature].words
    for node in view.nodes("DequantizeLinear"):
        if _stored_as(view, node) in (np.int8, np.uint8):
            why = f"{feature} with a DequantizeLinear alone, which TensorRT takes {span}"
            mend, can = "Float weights in front of Q and DQ", readable(view, node)
            yield Finding(
                rule="L10", severity="error", where=named(node), why=why, mend=mend, repairable=can
            )


def fix_stored_weights(view: View) -> int:
    """Repair L10 and return at how many places."""
    nodes = [
        n
        for n in view.nodes("DequantizeLinear")
        if _stored_as(view, n) in (np.int8, np.uint8) and readable(view, n)
    ]
    for node in nodes:
        value = dequantized(view, node)
        if (
            _stored_as(view, node) == np.uint8
        ):  # no INT8 codes hold it: its values remain, its pair is removed
            replace_node_(view, node, value)
            continue
        if len(node.input) < 3 or not node.input[2]:  # a QuantizeLinear would then mean UINT8 codes
            scale = view.value(node.input[1])
            assert scale is not None
            zeros = np.zeros(scale.shape, dtype=np.int8)
            node.input[:] = [*node.input[:2], add_named(view, f"{node.input[1]}/zero", zeros)]
        name = add_named(view, f"{node.output[0]}/float", value)
        quantizer = helper.make_node(
            "QuantizeLinear",
            [name, *node.input[1:]],
            [f"{node.output[0]}/codes"],
            name=f"{label_of(node)}/Q",
        )
        axis = axis_of(node)
        if axis is not None:
            quantizer.attribute.append(helper.make_attribute("axis", axis))
        node.input[0] = quantizer.output[0]
        place = next(i for i, n in enumerate(view.graph.node) if n == node)
        view.graph.node.insert(place, quantizer)
    return len(nodes)
