"""Residual adds: which operand is the shortcut, and whether quantizing it gains anything."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from trtq import ops
from trtq.graph.nodes import operands, same_sizes


def path_lengths(graph: fx.GraphModule) -> dict[fx.Node, int]:
    """Return the number of calls on the longest path from an input to each node."""
    lengths: dict[fx.Node, int] = {}
    for node in graph.graph.nodes:
        lengths[node] = max((lengths[i] + 1 for i in node.all_input_nodes), default=0)
    return lengths


def shortcut_of(node: fx.Node, lengths: Mapping[fx.Node, int]) -> tuple[int, str | None] | None:
    """Return which operand of an add is its shortcut, and why it remains in float.

    An add is residual when both operands are activations of one shape and one of them ends in a
    convolution or a linear whose only use is this add: that one fuses with the add. The other, or
    the shallower of two such, is the shortcut.

    Args:
        node: an add.
        lengths: from :func:`path_lengths`.

    Returns:
        The operand, 0 or 1, and the reason, which is None for a shortcut that is quantized; None
        for an add that is not residual.
    """
    left, right = operands(node)[:2]
    if node.kwargs or not _alike(left, right) or not lengths[left] or not lengths[right]:
        return None
    ends = _branch_end(left), _branch_end(right)
    if ends == (None, None):
        return None
    deeper_left = int(lengths[right] < lengths[left])
    operand = ends.index(None) if None in ends else deeper_left
    if ends[1 - operand] == "conv":
        return operand, None
    return (
        operand,
        "the add follows a linear layer and no INT8 convolution: a quantized residual stream "
        "would gain nothing",
    )


def _alike(left: object, right: object) -> bool:
    """Whether two operands are tensors of one shape, with a batch and two axes at least."""
    shapes = [
        n.meta["val"].shape
        for n in (left, right)
        if isinstance(n, fx.Node) and isinstance(n.meta.get("val"), torch.Tensor)
    ]
    return len(shapes) == 2 and same_sizes(*shapes) and len(shapes[0]) >= 3


def _branch_end(node: fx.Node) -> str | None:
    """Return the kind of op ("conv", "linear") whose values reach the add unchanged, or None."""
    while len(node.users) == 1:
        row = ops.of(node)
        if row.kind == "conv":
            return "conv"
        if row.kind in ("linear", "matmul"):
            return "linear"
        if "shape_only" not in row.traits and not _is_layer_scale(node):
            return None
        inner = operands(node)[0]
        if not isinstance(inner, fx.Node):
            return None
        node = inner
    return None


def _is_layer_scale(node: fx.Node) -> bool:
    """Whether a call multiplies with a constant of the model."""
    if ops.of(node).name != "mul":
        return False
    other = operands(node)[1]
    return isinstance(other, fx.Node) and other.op == "get_attr"
