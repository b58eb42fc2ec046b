"""Norms that layers read and the add behind them, too, as post-norm transformers have them.

Factors that move from such a norm into the layers must be given back to the add. A Mul by ones
between the two holds that place: a method changes its constant, and no file has a Mul by ones.
"""

from __future__ import annotations

import torch
from torch import fx

from trtq import ops
from trtq.graph.nodes import add_constant, get_constant, insert_call, module_path, operands

MARK = "trtq_restores"


def hold_restores(graph: fx.GraphModule) -> int:
    """Put a Mul by ones between a norm and its adds, where layers read it too; return how many."""
    norms = [(n, _adds(graph, n)) for n in graph.graph.nodes]
    norms = [(norm, adds) for norm, adds in norms if adds]
    for norm, adds in norms:
        weight = get_constant(graph, operands(norm)[ops.of(norm).affine[0]])
        assert weight is not None
        behind = norm.next
        name = f"{module_path(norm) or norm.name}.restores"
        ones = add_constant(graph, name, torch.ones_like(weight), before=behind)
        restored = insert_call(graph, behind, torch.ops.aten.mul.Tensor, norm, ones)
        restored.meta.update(val=norm.meta["val"], **{MARK: True})
        if "nn_module_stack" in norm.meta:
            restored.meta["nn_module_stack"] = norm.meta["nn_module_stack"]
        for add in adds:
            add.replace_input_with(norm, restored)
    return len(norms)


def is_restore(node: fx.Node) -> bool:
    """Whether a call is a Mul that gives factors back to what reads a norm beside layers."""
    return bool(node.meta.get(MARK))


def restores_nothing(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Return whether a call is such a Mul, and its factors are ones.

    Args:
        graph: the node's own.
        node: any node.
    """
    if not is_restore(node):
        return False
    factors = get_constant(graph, operands(node)[1])
    return factors is not None and bool((factors == 1.0).all())


def _adds(graph: fx.GraphModule, norm: fx.Node) -> list[fx.Node]:
    """Return the adds that read a norm beside linear layers, none where others read it, too."""
    row = ops.of(norm)
    given = operands(norm)
    if row.kind != "norm" or row.channels != -1 or len(given) <= row.affine[0]:
        return []
    weight = get_constant(graph, given[row.affine[0]])
    layers = [u for u in norm.users if _is_layer(graph, u, norm)]
    adds = [u for u in norm.users if ops.of(u).name == "add"]
    known = weight is not None and weight.ndim == 1
    whole = len(layers) + len(adds) == len(norm.users)
    return adds if known and layers and whole else []


def _is_layer(graph: fx.GraphModule, user: fx.Node, norm: fx.Node) -> bool:
    """Whether a call is a linear layer that reads a norm."""
    if ops.kind(user) != "linear" or operands(user)[0] is not norm:
        return False
    return get_constant(graph, operands(user)[1]) is not None
