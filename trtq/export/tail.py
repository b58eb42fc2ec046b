"""The end of a file that only TensorRT runs: it travels beside the graph and is written last."""

from __future__ import annotations

import base64

import onnx

from trtq.errors import ExportError
from trtq.onnx_node import label_of, names_of
from trtq.onnx_walk import branches

TAIL = "trtq.tail"  # metadata of a model in memory; a file has the nodes themselves
OWN = ("", "ai.onnx")


def pack_tail(tail: onnx.ModelProto) -> str:
    """Return a tail as the text that travels with a graph."""
    return base64.b85encode(tail.SerializeToString(deterministic=True)).decode()


def with_tail(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with the nodes of its tail behind it, itself where it has none.

    The outputs of the tail replace those of the model. Tensors inside the tail are renamed to
    ``tail/NAME``.

    Args:
        model: whose metadata may hold a tail, as :func:`pack_tail` writes it; not changed.

    Raises:
        ExportError: a node of the tail has another form in the model's opset.
    """
    text = next((p.value for p in model.metadata_props if p.key == TAIL), "")
    if not text:
        return model
    tail = onnx.load_from_string(base64.b85decode(text))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    kept = [p for p in result.metadata_props if p.key != TAIL]
    del result.metadata_props[:]
    result.metadata_props.extend(kept)
    _require_same_forms(tail, result)
    _rename_(tail)
    result.graph.node.extend(tail.graph.node)
    result.graph.initializer.extend(tail.graph.initializer)
    del result.graph.output[:]
    result.graph.output.extend(tail.graph.output)
    known = {o.domain for o in result.opset_import}
    result.opset_import.extend(
        o for o in tail.opset_import if o.domain not in OWN and o.domain not in known
    )
    return result


def _require_same_forms(tail: onnx.ModelProto, model: onnx.ModelProto) -> None:
    own, written = (
        next(o.version for o in m.opset_import if o.domain in OWN) for m in (tail, model)
    )
    for node in tail.graph.node:
        if node.domain in OWN and _since(node, own) != _since(node, written):
            raise ExportError(
                f"Cannot write {label_of(node)} ({node.op_type}) in opset {written}",
                f"it is behind a node that only TensorRT runs, and has another form than in {own}",
                f"Give --opset {own}",
            )


def _since(node: onnx.NodeProto, opset: int) -> int:
    try:
        return int(onnx.defs.get_schema(node.op_type, opset).since_version)
    except onnx.defs.SchemaError:
        return 0


def _rename_(tail: onnx.ModelProto) -> None:
    """Give the tensors inside a tail names that the graph in front of it cannot have."""
    outputs = names_of(tail.graph.output)
    inner_names = {o for n in tail.graph.node for o in n.output if o and o not in outputs}
    names = {n: f"tail/{n}" for n in inner_names | names_of(tail.graph.initializer)}
    for tensor in tail.graph.initializer:
        tensor.name = names[tensor.name]
    for node in tail.graph.node:
        _rename_node_(node, names)


def _rename_node_(node: onnx.NodeProto, names: dict[str, str]) -> None:
    node.input[:] = [names.get(n, n) for n in node.input]
    node.output[:] = [names.get(n, n) for n in node.output]
    for branch in branches(node):
        for inner in branch.node:
            _rename_node_(inner, names)
