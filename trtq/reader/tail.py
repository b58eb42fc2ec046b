"""Nodes that nothing here can run, such as plugins of TensorRT: the model is read up to them."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import onnx
from onnx import helper, numpy_helper

from trtq.errors import ModelError
from trtq.graph.opaque import has_libraries
from trtq.reader.call import OWN, reads_of
from trtq.reader.values import Array


def split_tail_(
    graph: onnx.GraphProto, constants: Mapping[str, Array], opsets: Mapping[str, int], name: str
) -> tuple[onnx.ModelProto | None, str]:
    """Take the nodes that nothing here runs, and all nodes behind them, out of a graph.

    Args:
        graph: sorted; the tensors that the tail reads become its outputs.
        constants: by name.
        opsets: by domain.
        name: of the file, for messages.

    Returns:
        The tail, None where everything runs, and what a user must know about it.

    Raises:
        ModelError: nothing is left in front of the tail.
    """
    nodes = list(graph.node)
    first = [n for n in nodes if not _runs(n, opsets.get("", 0))]
    if not first:
        return None, ""
    tail, tail_outputs = _behind(graph, first)
    kept = [n for n in graph.node if n not in tail]
    wanted = _wanted(graph, opsets, kept, tail, tail_outputs)
    shown = f"{first[0].name or first[0].output[0]} ({first[0].op_type})"
    if not kept or not wanted:
        raise ModelError(
            f"Cannot read the ONNX file {name}",
            f"nothing here can run {shown}, and no layer is in front of it",
            'Load the library that has the op: trtq.load("model.onnx", ort_library="ops.so")',
        )
    initializers = [
        numpy_helper.from_array(constants[r], r)
        for r in dict.fromkeys(r for n in tail for r in reads_of(n))
        if r in constants
    ]
    body = helper.make_graph(tail, "tail", [], list(graph.output), initializers)
    imports = [helper.make_opsetid(d, v) for d, v in opsets.items() if v]
    model = helper.make_model(body, opset_imports=imports)
    del graph.node[:]
    graph.node.extend(kept)
    del graph.output[:]
    graph.output.extend(wanted)
    note = (
        f"nothing here can run {shown}: the {len(tail)} nodes from there on remain in "
        f"float; compared are {', '.join(o.name for o in wanted)}"
    )
    return model, note


def _behind(
    graph: onnx.GraphProto, first: Sequence[onnx.NodeProto]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """Return the nodes ``first``, all nodes behind them, and the tensors that they make."""
    tail: list[onnx.NodeProto] = []
    tail_outputs: set[str] = set()
    for node in graph.node:
        if node in first or tail_outputs & set(reads_of(node)):
            tail.append(node)
            tail_outputs.update(node.output)
    return tail, tail_outputs


def _wanted(
    graph: onnx.GraphProto,
    opsets: Mapping[str, int],
    kept: Sequence[onnx.NodeProto],
    tail: Sequence[onnx.NodeProto],
    tail_outputs: set[str],
) -> list[onnx.ValueInfoProto]:
    """Return the outputs of what is kept: the graph's own, and what the tail reads."""
    before = {o for n in kept for o in n.output}
    read = dict.fromkeys(r for n in tail for r in reads_of(n) if r in before)
    own = [o for o in graph.output if o.name not in tail_outputs]
    names = {o.name for o in own}
    return [*own, *(_value(graph, opsets, r) for r in read if r not in names)]


@functools.cache
def _known_to_runtime() -> frozenset[tuple[str, str]]:
    """Return the domain and the name of every op that ONNX Runtime has."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return frozenset((s.domain, s.name) for s in state.get_all_operator_schema())


def _runs(node: onnx.NodeProto, opset: int) -> bool:
    """Whether torch or ONNX Runtime can compute a node."""
    if node.domain in OWN:
        return bool(onnx.defs.has(node.op_type, max_inclusive_version=opset))
    return (node.domain, node.op_type) in _known_to_runtime() or has_libraries()


def _value(graph: onnx.GraphProto, opsets: Mapping[str, int], name: str) -> onnx.ValueInfoProto:
    """Return a tensor inside a graph as an output of it; float32 where its type is not inferred."""
    imports = [helper.make_opsetid(d, v) for d, v in opsets.items() if v]
    model = helper.make_model(graph, opset_imports=imports)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    value_info = next((v for v in (*inferred.value_info, *inferred.output) if v.name == name), None)
    known = value_info is not None and value_info.type.tensor_type.elem_type
    code = value_info.type.tensor_type.elem_type if value_info is not None and known else 1
    return helper.make_tensor_value_info(name, code, None)
