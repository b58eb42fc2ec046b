"""Recovery of the float model from a Q/DQ model.

It is for hardware without INT8 arithmetic, where a Q/DQ graph does not build at all.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx

from trtq import ops
from trtq.errors import ExportError
from trtq.export.clamps import clamp_, clamps_of
from trtq.export.lint_view import View, add_named, dequantized, drop_unread_, named
from trtq.onnx_node import label_of, names_of
from trtq.onnx_walk import QDQ, all_nodes, rename_, scopes

# Ops that may be between the halves of a pair: they move codes as they move values.
BETWEEN = ops.onnx_types(trait="moves_codes")


def strip_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` without its Q/DQ pairs, also in branches.

    A weight becomes the input of its pair, or the values of its stored codes in the type of their
    scale. A pair that is a ReLU, too, becomes one (:mod:`trtq.export.clamps`).

    Args:
        model: not changed.

    Raises:
        ExportError: an op that computes is between the two halves of a pair, codes are stored in
            blocks, or an output or another node reads codes.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for k in reversed(range(len(scopes(result)))):  # a branch may read codes of the graph around it
        _strip_graph_(View(result, scope=scopes(result)[k]))
    drop_unread_(result)
    if any(n.op_type in QDQ for n in all_nodes(result)):
        raise ExportError(
            "Cannot take the Q/DQ pairs out",
            "codes of some are read by something else",
            "Give the float file instead",
        )
    return result


def _strip_graph_(view: View) -> None:
    graph, clamps = view.graph, clamps_of(view)
    for node in view.nodes("DequantizeLinear"):
        if view.value(node.input[0]) is not None:  # stored as codes
            _replace_(
                view, node, add_named(view, f"{node.output[0]}/float", dequantized(view, node))
            )
        elif _ends_at_codes(view, node.input[0]):
            _replace_(view, node, node.input[0])
        else:
            raise ExportError(
                f"Cannot take the Q/DQ pairs out at {named(node)}",
                "another node is between its two halves",
                "Give the float file instead",
            )
    outputs = names_of(graph.output)
    for node in view.nodes("QuantizeLinear"):
        if node.output[0] in outputs:
            where, why = (
                f"Cannot take the Q/DQ pairs out at {named(node)}",
                "its codes are an output of the model",
            )
            raise ExportError(where, why, "Give the float file instead")
        largest = clamps.get(node.output[0])
        source = node.input[0] if largest is None else clamp_(view, node, largest)
        _replace_(view, node, source)


def _ends_at_codes(view: View, name: str) -> bool:
    """Whether codes come from QuantizeLinear nodes alone, through ops that move them."""
    node = view.scope.maker(name)
    if node is None or node.op_type == "QuantizeLinear":
        return node is not None
    inputs = node.input if node.op_type == "Concat" else node.input[:1]
    return node.op_type in BETWEEN and all(_ends_at_codes(view, n) for n in inputs)


def _replace_(view: View, node: onnx.NodeProto, name: str) -> None:
    view.graph.node.remove(node)
    rename_(view.graph, node.output[0], name)


def strip_at(model: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """Return ``model`` in which these nodes read the inputs of their Q/DQ pairs.

    Other readers of the pairs keep them.

    Args:
        model: not changed.
        nodes: names; a node without a name has that of its first output.

    Raises:
        ExportError: the codes of a weight are stored in blocks.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for scope in scopes(result):
        view = View(result, scope=scope)
        clamps = clamps_of(view)
        for node in [n for n in scope.graph.node if label_of(n) in nodes]:
            for i, name in enumerate(node.input):
                if view.pair(name) is not None:
                    node.input[i] = _unpaired(view, name, clamps)
    drop_unread_(result)
    return result


def _unpaired(view: View, name: str, clamps: Mapping[str, float]) -> str:
    """Return a tensor with the values that ``name`` has before its pair.

    Ops that move values between the pair and its reader are copied.
    """
    node = view.scope.maker(name)
    assert node is not None
    if node.op_type == "DequantizeLinear":
        return _before(view, name, node, clamps)
    source = f"{name}/float"
    if source in view.scope.local:
        return source
    if name not in view.producer:
        return name  # a pair outside of the branch remains
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{label_of(node)}/float"
    for i, given in enumerate(node.input if node.op_type == "Concat" else node.input[:1]):
        copy.input[i] = _unpaired(view, given, clamps)
    copy.output[:] = [source if o == name else "" for o in node.output]
    place = list(view.graph.node).index(node)
    view.graph.node.insert(place + 1, copy)
    view.scope.local.add(source)
    return source


def _before(view: View, name: str, dq: onnx.NodeProto, clamps: Mapping[str, float]) -> str:
    """Return what a pair reads, behind its activation, or the values of its stored codes."""
    pair = view.pair(name)
    assert pair is not None
    if pair.q is not None and pair.q.output[0] == dq.input[0]:
        largest = clamps.get(pair.q.output[0])
        return str(pair.q.input[0]) if largest is None else clamp_(view, pair.q, largest)
    known = view.value(dq.input[0]) is not None
    return add_named(view, f"{name}/float", dequantized(view, dq)) if known else name
