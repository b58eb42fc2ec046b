"""Which rows the indices of an input select, as far as the graph says it."""

from __future__ import annotations

from torch import fx

from trtq import ops
from trtq.graph.nodes import get_constant, operands

COPIES = ("_to_copy", "to", "clone")  # hand values on, beside the operators that only move them


def embedding_rows(graph: fx.GraphModule) -> dict[str, int]:
    """Return, by the name of a placeholder, the rows of the smallest embedding that it indexes."""
    rows: dict[str, int] = {}
    for node in graph.graph.nodes:
        if ops.of(node).name != "embedding":
            continue
        weight, indices = operands(node)[:2]
        source, table = _input_of(indices), get_constant(graph, weight)
        if source is not None and table is not None:
            count = int(table.shape[0])
            rows[source.name] = min(count, rows.get(source.name, count))
    return rows


def _input_of(value: object) -> fx.Node | None:
    """Return the input whose values a tensor has, None where it computes others."""
    while isinstance(value, fx.Node) and value.op == "call_function":
        name = ops.form_of(value.target).partition(".")[0]
        hands_on = "shape_only" in ops.of(value).traits or name in COPIES
        value = operands(value)[0] if hands_on else None
    return value if isinstance(value, fx.Node) and value.op == "placeholder" else None
