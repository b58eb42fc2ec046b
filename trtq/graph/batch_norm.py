"""Normalisation of BatchNorm: into the layer before it, or into a factor and a shift."""

from __future__ import annotations

import operator
from typing import NamedTuple

import torch
from torch import fx

from trtq import ops
from trtq.graph.nodes import (
    add_constant,
    get_constant,
    insert_call,
    like,
    module_path,
    operands,
    set_constant_,
)

aten = torch.ops.aten


class _Norm(NamedTuple):
    """A BatchNorm with fixed statistics, as y = x * scale + shift, float64 [C].

    Attributes:
        node: the call.
        source: its operand.
        outputs: the nodes that give its result.
    """

    node: fx.Node
    source: fx.Node
    outputs: list[fx.Node]
    scale: torch.Tensor
    shift: torch.Tensor


def fold_batch_norm(graph: fx.GraphModule) -> int:
    """Fold a batch normalisation into the convolution or linear before it.

    Its formula is y = (x - mean) / sqrt(var + eps) * w + b, computed in float64. Where it cannot be
    folded, it is written as x * s + t. A layer that took one in has its path in
    ``meta["batch_norm"]``.

    Returns:
        How many there were.
    """
    count = 0
    for node in list(graph.graph.nodes):
        norm = _read(graph, node) if ops.of(node).name == "batch_norm" else None
        if norm is None:
            continue
        if _can_fold(graph, norm.source):
            result = _fold(graph, norm)
            result.meta["batch_norm"] = module_path(node)  # training may take it up again
        else:
            result = _spell_out(graph, norm)
        for output in norm.outputs:
            output.replace_all_uses_with(result)
            if output is not node:
                graph.graph.erase_node(output)
        if not node.users:
            graph.graph.erase_node(node)
        count += 1
    return count


def _read(graph: fx.GraphModule, node: fx.Node) -> _Norm | None:
    """Return what a BatchNorm computes, None where its statistics are computed."""
    source, weight, bias, mean, var, *rest = operands(node)
    mu, sigma2 = get_constant(graph, mean), get_constant(graph, var)
    if mu is None or sigma2 is None:
        return None
    plain = node.target is aten.batch_norm.default  # the other form gives several results
    outputs = (
        [node]
        if plain
        else [u for u in node.users if u.target is operator.getitem and operands(u)[1] == 0]
    )
    eps = float(rest[2] if plain else rest[1])
    gamma, beta = get_constant(graph, weight), get_constant(graph, bias)
    scale = torch.rsqrt(sigma2.double() + eps) * (1.0 if gamma is None else gamma.double())
    shift = (0.0 if beta is None else beta.double()) - mu.double() * scale
    return _Norm(node, source, outputs, scale, shift)


def _can_fold(graph: fx.GraphModule, source: fx.Node) -> bool:
    """Whether the output channels of ``source`` can be scaled exactly inside its weights."""
    if len(source.users) != 1 or ops.kind(source) not in ("conv", "linear"):
        return False
    if ops.kind(source) == "linear" and source.meta["val"].ndim != 2:
        return False  # BatchNorm1d normalises axis 1, linear's channels are last
    weight, bias = (*operands(source), None)[1:3]
    if get_constant(graph, weight) is None or len(weight.users) != 1:
        return False
    return bias is None or get_constant(graph, bias) is not None


def _fold(graph: fx.GraphModule, norm: _Norm) -> fx.Node:
    """Scale and shift the output channels of the layer before, inside its weights."""
    source = norm.source
    weight_node, bias_node = (*operands(source), None)[1:3]
    weight, bias = get_constant(graph, weight_node), get_constant(graph, bias_node)
    assert weight is not None
    per_channel = norm.scale.reshape([-1] + [1] * (weight.ndim - 1))
    set_constant_(graph, weight_node, (weight.double() * per_channel).float())
    new_bias = ((0.0 if bias is None else bias.double() * norm.scale) + norm.shift).float()
    if bias_node is not None and len(bias_node.users) == 1:
        set_constant_(graph, bias_node, new_bias)
        return source
    base = str(weight_node.target).removesuffix("weight").rstrip("._")
    args = list(operands(source))
    args[2:3] = [add_constant(graph, f"{base}.bias", new_bias, before=source)]
    source.args = tuple(args)
    return source


def _spell_out(graph: fx.GraphModule, norm: _Norm) -> fx.Node:
    """Write the norm as a product and a sum."""
    node, source = norm.node, norm.source
    shape = [1, -1] + [1] * (source.meta["val"].ndim - 2)
    path = module_path(node) or "bn"
    scale = norm.scale.float().reshape(shape)
    shift = norm.shift.float().reshape(shape)
    s = add_constant(graph, f"{path}.scale", scale, before=node)
    t = add_constant(graph, f"{path}.shift", shift, before=node)
    product = insert_call(graph, node, aten.mul.Tensor, source, s)
    result = like(insert_call(graph, node, aten.add.Tensor, product, t), node)
    result.meta["val"] = source.meta["val"]
    return result
