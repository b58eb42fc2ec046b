"""A node as a model of its own, for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from trtq.free_names import free_name
from trtq.graph.dtypes import ONNX_TYPES
from trtq.onnx_walk import branches
from trtq.reader.call import OWN, Call, reads_of
from trtq.reader.read_resample import resized
from trtq.reader.values import Array, UnreadError, Value


def opaque_model(
    call: Call,
    outer: Sequence[str],
    domains: Mapping[str, int],
    results: Sequence[tuple[torch.dtype, int]],
) -> tuple[onnx.ModelProto, list[int]]:
    """Return a model of the node alone, and which values of the call are its inputs.

    Small constants are part of the model: shape inference reads them.

    Args:
        call: the node; tensors that its branches read follow its operands.
        outer: the names of those.
        domains: opsets of the file.
        results: type and rank of each result, where they are known: shape inference does not know
            those of a Loop.

    Raises:
        UnreadError: an operand is of a type that ONNX lacks.
    """
    node = onnx.NodeProto()
    node.CopyFrom(call.node)
    names = _operand_names(node, outer)
    inputs, initializers, places = [], [], []
    node.input[:] = [n if v is not None else "" for n, v in zip(names, call.given, strict=False)]
    for i, (name, value) in enumerate(zip([*names, *outer], call.given, strict=True)):
        if value is None:
            continue
        if value.tensor is not None and value.host is not None:
            initializers.append(numpy_helper.from_array(_array(value), name))
            continue
        tensor = call.x(i)
        if tensor.dtype not in ONNX_TYPES:
            raise UnreadError(f"an operand of {tensor.dtype}")
        # Ops such as Resize read the length of their sizes before they run.
        sizes = [d if isinstance(d, int) else None for d in tensor.shape]
        inputs.append(helper.make_tensor_value_info(name, ONNX_TYPES[tensor.dtype], sizes))
        places.append(i)
    outputs = [onnx.ValueInfoProto(name=o) for o in node.output if o]
    for value, (dtype, rank) in zip(outputs, results, strict=bool(results)):
        info = helper.make_tensor_value_info(value.name, ONNX_TYPES[dtype], [None] * rank)
        value.CopyFrom(info)
    graph = helper.make_graph([node], "node", inputs, outputs, initializers)
    opsets = {**domains, "": oldest_form(node, domains.get("", 0))}
    imports = [helper.make_opsetid(d, v) for d, v in sorted(opsets.items()) if v]
    return helper.make_model(graph, opset_imports=imports, ir_version=10), places


def _operand_names(node: onnx.NodeProto, outer: Sequence[str]) -> list[str]:
    """Return a name for each operand: its own where the branches read it, too; "" for none."""
    inner = {*list(reads_of(node))[len(node.input) :]}
    taken = {*outer, *inner, *_made(node)}
    own = {n: i for i, n in reversed([*enumerate(node.input)]) if n in inner}
    return [
        (n if own.get(n) == i else free_name(f"x{i}", taken)) if n else ""
        for i, n in enumerate(node.input)
    ]


def _made(node: onnx.NodeProto) -> Iterator[str]:
    """Yield the tensors that a node and the nodes in its branches make."""
    yield from node.output
    for branch in branches(node):
        yield from (v.name for v in (*branch.input, *branch.initializer))
        for inner in branch.node:
            yield from _made(inner)


def known_sizes(call: Call) -> list[Any]:
    """Return the sizes of a node's first result where its operands are numbers that give them.

    ONNX's shape inference does not see these numbers: they are computed outside the node.
    """
    return resized(call) if call.node.op_type in ("Resize", "Upsample") else []


def _array(value: Value) -> Array:
    """Return a constant in the type of its tensor."""
    kind = str(value.dtype).removeprefix("torch.")
    return np.asarray(value.known()).astype(kind)


def oldest_form(node: onnx.NodeProto, opset: int) -> int:
    """Return the first opset that has the form of a node, which runtimes know the best.

    Args:
        node: of any domain.
        opset: of the file; it remains for other domains, and for nodes with branches.
    """
    if node.domain not in OWN or any(a.HasField("g") for a in node.attribute):
        return opset
    try:
        return int(onnx.defs.get_schema(node.op_type, opset).since_version)
    except onnx.defs.SchemaError:
        return opset
