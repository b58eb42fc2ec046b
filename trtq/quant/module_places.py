"""Where a module's own input, weight or output is read in a captured graph."""

from __future__ import annotations

import torch
from torch import fx

from trtq.graph.naming import module_name
from trtq.graph.nodes import operands
from trtq.ops import Role

MODULE_ROLES: tuple[Role, ...] = ("input", "weight", "output")


def module_places(
    graph: fx.GraphModule, module: str, role: Role
) -> list[tuple[fx.Node, int, fx.Node]]:
    """Return wherever a module's input, weight or output is read.

    Args:
        graph: normalised and named.
        module: path of the module.
        role: of :data:`MODULE_ROLES`.

    Returns:
        (reader, index of the operand, source) of each place, in graph order.
    """
    return [
        (node, i, operand)
        for node in graph.graph.nodes
        if node.op in ("call_function", "output")
        for i, operand in enumerate(_read_by(node))
        if isinstance(operand, fx.Node)
        and is_float(operand)
        and _meets(module, role, node, operand)
    ]


def is_float(node: fx.Node) -> bool:
    """Whether a node's value is float32, or not known."""
    value = node.meta.get("val")
    return not isinstance(value, torch.Tensor) or value.dtype == torch.float32


def _read_by(node: fx.Node) -> tuple[object, ...]:
    """Return what a call, or the end of the graph, reads."""
    given = operands(node)
    return tuple(given[0]) if node.op == "output" and isinstance(given[0], (list, tuple)) else given


def _meets(module: str, role: Role, consumer: fx.Node, source: fx.Node) -> bool:
    """Whether a call reads a module's weight, its input from outside, or its output outside."""
    if role == "weight":
        return (
            source.op == "get_attr"
            and str(source.target).removeprefix("model.") == f"{module}.weight"
        )
    if source.op == "get_attr":
        return False
    reads = consumer.op != "output" and _within(module, module_name(consumer))
    folded = source.meta.get(
        "batch_norm"
    )  # of this path: what the node gives is the normalisation's output, not its own
    makes = (
        _within(module, module_name(source))
        if folded is None or role == "input"
        else module == folded
    )
    return (reads and not makes) if role == "input" else (makes and not reads)


def _within(module: str, path: str) -> bool:
    return path == module or path.startswith(f"{module}.")
