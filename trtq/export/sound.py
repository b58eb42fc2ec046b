"""Checks that an ONNX model is complete enough to be examined.

No plugin and no unknown op is refused here, only what no reader could use.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Set

import onnx
from onnx import TensorProto, numpy_helper

from trtq.errors import ExportError
from trtq.onnx_node import names_of
from trtq.onnx_walk import BITS, all_tensors, branches, bytes_of

LARGEST_PROTOBUF = (1 << 31) - 1  # bytes


def require_sound(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model that is damaged.

    Args:
        model: as it was parsed, external data loaded.
        name: of the file, for messages.

    Raises:
        ExportError: names the first node or tensor that is wrong, and how.
    """
    why = next(_faults(model), None)
    if why is not None:
        raise ExportError(f"Cannot use {name}", f"it is damaged: {why}", "Export it again")


def require_one_file(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model whose stored tensors do not fit one file.

    Args:
        model: to be written.
        name: of the file, for messages.

    Raises:
        ExportError: its tensors take more than 2 GB.
    """
    size = sum(map(bytes_of, all_tensors(model)))
    if size > LARGEST_PROTOBUF:
        raise ExportError(
            f"Cannot write {name}",
            f"its tensors take {size / 1e9:.1f} GB, and an ONNX file ends at 2 GB",
            "Use a smaller model, or cut it into parts of less than 2 GB",
        )


def _faults(model: onnx.ModelProto) -> Iterator[str]:
    if not model.graph.input:
        yield "it has no inputs"
    if not model.graph.output:
        yield "it has no outputs"
    versions = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    yield from _graph_faults(model.graph, versions, frozenset())


def _graph_faults(
    graph: onnx.GraphProto, versions: dict[str, int], outer: Set[str]
) -> Iterator[str]:
    given = names_of((*graph.input, *graph.initializer))
    given |= {s.values.name for s in graph.sparse_initializer}
    known = outer | given | {o for n in graph.node for o in n.output}
    for tensor in graph.initializer:
        yield from _tensor_faults(tensor, f"the constant {tensor.name}")
    for node in graph.node:
        yield from _node_faults(node, versions, known)
        for attribute in node.attribute:
            what = f"the attribute {attribute.name} of {_named(node)}"
            for tensor in _tensors_of(attribute):
                yield from _tensor_faults(tensor, what)
        for inner in branches(node):
            yield from _graph_faults(inner, versions, known)
    name_counts = Counter(o for n in graph.node for o in n.output if o)
    name_counts.update(names_of(graph.input))
    twice = next((name for name, count in name_counts.items() if count > 1), None)
    if twice is not None:
        yield f"{twice!r} is made twice"
    for value in graph.output:
        if value.name not in known:
            yield f"nothing makes the output {value.name!r}"


def _tensors_of(attribute: onnx.AttributeProto) -> Iterable[TensorProto]:
    return (*attribute.tensors, *([attribute.t] if attribute.HasField("t") else []))


def _node_faults(node: onnx.NodeProto, versions: dict[str, int], known: Set[str]) -> Iterator[str]:
    missing = next((i for i in node.input if i and i not in known), None)
    if missing is not None:
        yield f"{_named(node)} reads {missing!r}, which nothing makes"
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(
            node.op_type, versions.get(domain, onnx.defs.onnx_opset_version()), domain
        )
    except onnx.defs.SchemaError:
        return  # a plugin, or an op of another release
    if not schema.min_input <= len(node.input) <= schema.max_input:
        yield (
            f"{_named(node)} has {len(node.input)} inputs, expected {schema.min_input} to "
            f"{schema.max_input}"
        )
    if not schema.min_output <= len(node.output) <= schema.max_output:
        yield (
            f"{_named(node)} has {len(node.output)} outputs, expected {schema.min_output} to "
            f"{schema.max_output}"
        )


def _named(node: onnx.NodeProto) -> str:
    return f"the node {node.name or next(iter(node.output), '')!r} ({node.op_type})"


def _tensor_faults(tensor: TensorProto, what: str) -> Iterator[str]:
    if any(d < 0 for d in tensor.dims):
        yield f"{what} has the shape {list(tensor.dims)}"
    elif tensor.data_type != TensorProto.STRING and tensor.data_type not in BITS:
        yield f"{what} has the unknown type {tensor.data_type}"
    elif tensor.data_location == TensorProto.EXTERNAL:
        return  # the reader of the values checks whether its file exists
    elif tensor.HasField("raw_data"):
        wanted = bytes_of(tensor)
        if len(tensor.raw_data) != wanted:
            yield (
                f"{what} has {len(tensor.raw_data)} bytes, its shape {list(tensor.dims)} needs "
                f"{wanted}"
            )
    else:
        try:
            numpy_helper.to_array(tensor)
        except (ValueError, TypeError, OverflowError) as exc:
            yield f"{what} does not fit its shape {list(tensor.dims)} ({exc})"
