"""Functional graphs without a second trace.

In-place calls become their functional twins where that is provably the same.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from trtq import ops


def make_functional_(graph: fx.GraphModule) -> bool:
    """Replace every in-place call by its functional twin.

    ``x.relu_()`` equals ``y = relu(x)`` with every later use of x reading y, as long as no other
    view of x's memory is read afterwards and x is neither an input nor a constant. Graphs with
    nested graphs (autocast, no_grad regions) are left alone.

    Returns:
        False where that cannot be shown to be exact; some calls may be replaced then.
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
        if _is_mutating(node):
            twin = _exact_twin(node, roots, order)
            if twin is None:
                return False
            _replace_in_place_(node, twin, order)
            roots[node] = node
    graph.recompile()
    return True


def drop_writes_(graph: fx.GraphModule) -> None:
    """Remove the writes into inputs and buffers that end a functionalised graph.

    Later reads of such a tensor see the value that was written.
    """
    for node in graph.graph.nodes:
        if node.target is torch.ops.aten.copy_.default and node.args[0].op != "call_function":
            node.replace_all_uses_with(node.args[1])
            graph.graph.erase_node(node)
    graph.recompile()


def _exact_twin(
    node: fx.Node, roots: dict[fx.Node, fx.Node], order: dict[fx.Node, int]
) -> torch._ops.OpOverload | None:
    """Return the functional twin of an in-place call, None where it may compute something else."""
    twin, changed = _functional_twin(node), node.args[0]
    if twin is None or not isinstance(changed, fx.Node) or roots[changed].op != "call_function":
        return None
    values = [n.meta.get("val") for n in node.all_input_nodes]
    if len({v.dtype for v in values if isinstance(v, torch.Tensor)}) > 1:
        return None  # in place the result keeps the first operand's type, the twin may not
    views = [n for n, root in roots.items() if root is roots[changed] and n not in (changed, node)]
    read_later = any(order[user] > order[node] for view in views for user in view.users)
    return None if read_later else twin


def _replace_in_place_(
    node: fx.Node, twin: torch._ops.OpOverload, order: dict[fx.Node, int]
) -> None:
    """Let a call make a new value, which what comes later reads."""
    changed = node.args[0]
    assert isinstance(changed, fx.Node)
    node.target = twin
    changed.replace_all_uses_with(node, delete_user_cb=lambda user: order[user] > order[node])


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
    if node.target is operator.getitem or "may_alias" in ops.of(node).traits:
        return next(iter(node.all_input_nodes), None)
    if isinstance(node.target, torch._ops.OpOverload) and any(
        r.alias_info is not None for r in node.target._schema.returns
    ):
        return first if isinstance(first, fx.Node) else None
    return None
