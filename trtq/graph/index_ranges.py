"""Which rows the indices of an input select, as far as the graph says it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from trtq import ops
from trtq.graph.nodes import get_constant, operands

# They hand values on, beside the operators that only move them.
COPIES = ("_to_copy", "to", "clone", "expand")


def embedding_rows(graph: fx.GraphModule) -> dict[str, int]:
    """Return how many rows the smallest table has that each input indexes.

    Indices are followed through ops that only move or cast values; a one-hot vector counts as a
    table.

    Args:
        graph: captured.

    Returns:
        By the name of the placeholder; inputs that index nothing are left out.
    """
    rows: dict[str, int] = {}
    for node in graph.graph.nodes:
        for indices, count in _tables(graph, node):
            source = _input_of(indices)
            if source is not None:
                rows[source.name] = min(count, rows.get(source.name, count))
    return rows


def _tables(graph: fx.GraphModule, node: fx.Node) -> Iterator[tuple[object, int]]:
    """Yield what indexes a stored table in a call, and how many rows that has."""
    name = ops.of(node).name
    if name == "embedding":
        table, indices = operands(node)[:2]
        yield from _stored(graph, table, indices, 0)
    elif name == "index_select":
        table, axis, indices = operands(node)[:3]
        yield from _stored(graph, table, indices, int(axis))
    elif name == "eq":  # a vector with a one in the place of each index
        for indices, other in (operands(node)[:2], operands(node)[1::-1]):
            places = get_constant(graph, other)
            if places is not None and _counts_up(places):
                yield indices, places.numel()


def _stored(
    graph: fx.GraphModule, table: object, indices: object, axis: int
) -> Iterator[tuple[object, int]]:
    constant = get_constant(graph, table)
    if constant is not None:
        yield indices, int(constant.shape[axis])


def _counts_up(places: torch.Tensor) -> bool:
    """Whether a constant is 0, 1, 2 ... along one axis."""
    flat = places.flatten()
    wide = sum(size > 1 for size in places.shape) == 1
    counted = torch.arange(len(flat), dtype=flat.dtype, device=flat.device)
    return wide and bool((flat == counted).all())


def _input_of(value: object) -> fx.Node | None:
    """Return the input whose values a tensor has, None where it computes others."""
    while isinstance(value, fx.Node) and value.op == "call_function":
        name = ops.form_of(value.target).partition(".")[0]
        if name == "where":  # places counted from the end become places from the start
            below, _, rest = operands(value)[:3]
            counted = isinstance(below, fx.Node) and ops.of(below).name == "lt"
            value = rest if counted and operands(below)[0] is rest else None
            continue
        hands_on = "shape_only" in ops.of(value).traits or name in COPIES
        value = operands(value)[0] if hands_on else None
    return value if isinstance(value, fx.Node) and value.op == "placeholder" else None
