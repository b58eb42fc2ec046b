"""The float model back from a Q/DQ model: for hardware without INT8 arithmetic, where a Q/DQ graph does not build at all."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import numpy_helper

from trtq.errors import ExportError
from trtq.export.lint_view import View, add_named, dequantized, drop_unread_, named
from trtq.export.onnx_file import QDQ


def strip_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return ``model`` without its Q/DQ pairs; weights are what went into their pair, or the values of codes that were stored.

    Raises:
        ExportError: something stands between the two halves of a pair, or codes are stored in blocks.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph, view = result.graph, View(result)
    instead: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            continue
        pair = view.pair(node.output[0]) if node.op_type == "DequantizeLinear" else None
        if pair is None:
            kept.append(node)
        elif pair[0] is not None:
            instead[node.output[0]] = pair[0].input[0]
        elif node.input[0] in view.constants:  # stored as codes
            graph.initializer.append(numpy_helper.from_array(dequantized(view, node), node.output[0]))
        else:
            raise ExportError(
                f"Cannot take the Q/DQ pairs out at {named(node)}", "something stands between its two halves", "Give the float file instead"
            )
    for node in kept:
        for i in range(len(node.input)):
            while node.input[i] in instead:
                node.input[i] = instead[node.input[i]]
    for output in graph.output:
        if output.name in instead:
            kept.append(onnx.helper.make_node("Identity", [instead[output.name]], [output.name]))
    del graph.node[:]
    graph.node.extend(kept)
    drop_unread_(result)
    if any(n.op_type in QDQ for n in graph.node):
        raise ExportError("Cannot take the Q/DQ pairs out", "some are inside a branch of an If or a Loop", "Give the float file instead")
    return result


def strip_at(model: onnx.ModelProto, nodes: Collection[str]) -> onnx.ModelProto:
    """Return ``model`` in which these nodes read what went into their Q/DQ pairs; other readers of the pairs keep them."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    view = View(result)
    for node in result.graph.node:
        if node.name not in nodes:
            continue
        for i, name in enumerate(node.input):
            pair, cast = view.pair(name), view.producer.get(name)
            reader, at = (cast, 0) if cast is not None and cast.op_type == "Cast" else (node, i)  # a cast behind the pair stays
            if pair is not None and pair[0] is not None:
                reader.input[at] = pair[0].input[0]
            elif pair is not None and pair[1].input[0] in view.constants:  # stored as codes
                made = f"{pair[1].output[0]}/float"
                if made not in view.constants:
                    add_named(view, made, dequantized(view, pair[1]))
                reader.input[at] = made
    drop_unread_(result)
    return result
