"""Stored tables that the inputs of an ONNX model index."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx

from trtq import ops
from trtq.onnx_node import integer

INDICES = 1  # which operand of a Gather holds the indices
# Ops that may be between a stored table and the Gather that reads it.
MOVES = ops.onnx_types("identity", "cast", "permute", "quantize")


def table_sizes(model: onnx.ModelProto) -> dict[str, int]:
    """Return how many rows the smallest table has that each input of a model indexes, by input.

    Inputs that index no stored table are not in it. A table may be behind a Q/DQ pair, a Cast or a
    Transpose: stored as [D, V] and transposed it has V rows.
    """
    return tables_of(model.graph, {i.name: list(i.dims) for i in model.graph.initializer})


def tables_of(graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return the same for a graph whose constants are beside it.

    Args:
        graph: inputs and nodes.
        shapes: of the stored tensors, by name.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    tables = _Tables(graph, shapes)
    sizes = {i.name: list(_rows(i.name, readers, tables)) for i in graph.input}
    return {name: min(row_counts) for name, row_counts in sizes.items() if row_counts}


class _Tables:
    """The shapes of stored tensors, also behind a Q/DQ pair."""

    def __init__(self, graph: onnx.GraphProto, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = shapes
        self.makers = {o: n for n in graph.node for o in n.output}

    def rows(self, node: onnx.NodeProto) -> int | None:
        """Return how many entries a Gather can choose from; None where no table is stored."""
        name, moves = node.input[0], list[onnx.NodeProto]()
        while name not in self.shapes:
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in MOVES:
                return None
            moves.append(maker)
            name = maker.input[0]
        shape = list(self.shapes[name])
        for move in reversed(moves):
            if ops.kind(move) == "permute":
                order = next((a.ints for a in move.attribute if a.name == "perm"), None)
                shape = [shape[d] for d in order] if order is not None else shape[::-1]
        axis = integer(node, "axis", 0)
        return int(shape[axis]) if shape else None


def _rows(
    name: str, readers: Mapping[str, Sequence[onnx.NodeProto]], tables: _Tables
) -> Iterator[int]:
    """Yield the number of rows of every table that a tensor indexes."""
    seen, waiting = {name}, [name]
    while waiting:
        tensor = waiting.pop()
        for node in readers.get(tensor, ()):
            if node.op_type.startswith("Gather") and list(node.input)[INDICES] == tensor:
                rows = tables.rows(node)
                if rows is not None:
                    yield rows
            elif _keeps_values(node) and node.input[0] == tensor:
                fresh = [o for o in node.output if o not in seen]
                seen.update(fresh)
                waiting += fresh


def _keeps_values(node: onnx.NodeProto) -> bool:
    """Whether a node's result has values of its first operand alone."""
    row = ops.of(node)
    return row.name == "cast" or "moves" in row.traits
