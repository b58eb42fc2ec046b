"""Functional graphs without a second trace.

In-place calls become their functional twins where that is provably the same.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

aten = torch.ops.aten
# Alias by behaviour though their schemas do not say so.
MAY_ALIAS = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.broadcast_tensors.default,
    aten.einsum.default,
)


def make_functional_(graph: fx.GraphModule) -> bool:
    """Replace every in-place call by its functional twin.

    Returns False where that cannot be shown to be exact; the graph is then not guaranteed to be
    functional.

    ``x.relu_()`` equals ``y = relu(x)`` with every later use of x reading y, as long as no other
    view of x's memory is read afterwards and x is neither an input nor a constant. Graphs with
    nested graphs (autocast, no_grad regions) are left alone.
    """
    if any(
        n.op == "call_module" or isinstance(n.target, torch._ops.HigherOrderOperator)
        for n in graph.graph.nodes
    ):
        return False
    order = {n: i for i, n in enumerate(graph.graph.nodes)}
    roots: dict[fx.Node, fx.Node] = {}
    for node in list(graph.graph.nodes):
        base = _aliased(node)
        roots[node] = roots[base] if base is not None else node
        if not _is_mutating(node):
            continue
        changed = node.args[0]
        twin = _functional_twin(node)
        if twin is None or not isinstance(changed, fx.Node) or roots[changed].op != "call_function":
            return False
        if (
            len(
                {
                    v.dtype
                    for n in node.all_input_nodes
                    if isinstance(v := n.meta.get("val"), torch.Tensor)
                }
            )
            > 1
        ):
            return False  # in place the result keeps the first operand's type, the twin may not
        others = [
            n for n, root in roots.items() if root is roots[changed] and n not in (changed, node)
        ]
        if any(order[user] > order[node] for other in others for user in other.users):
            return False
        node.target = twin

        def comes_later(user: fx.Node, position: int = order[node]) -> bool:
            return order[user] > position

        changed.replace_all_uses_with(node, delete_user_cb=comes_later)
        roots[node] = node
    graph.recompile()
    return True


def _is_mutating(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _functional_twin(node: fx.Node) -> torch._ops.OpOverload | None:
    """Return the overload without the underscore and with the same arguments.

    For example, ``relu_.default`` gives ``relu.default``.
    """
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema
    written = [
        a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write
    ]
    name = schema.name.split("::")[-1]
    if written != [schema.arguments[0].name] or not name.endswith("_"):
        return None
    packet = getattr(getattr(torch.ops, node.target.namespace), name[:-1], None)
    twin = getattr(packet, node.target._overloadname, None)
    return twin if isinstance(twin, torch._ops.OpOverload) and not twin._schema.is_mutable else None


def _aliased(node: fx.Node) -> fx.Node | None:
    """Return the operand whose memory the result may share, None when the result is new memory."""
    if node.op != "call_function":
        return None
    first = node.args[0] if node.args else None
    if node.target is operator.getitem or node.target in MAY_ALIAS:
        return next(iter(node.all_input_nodes), None)
    if isinstance(node.target, torch._ops.OpOverload) and any(
        r.alias_info is not None for r in node.target._schema.returns
    ):
        return first if isinstance(first, fx.Node) else None
    return None
