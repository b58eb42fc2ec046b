"""The cost of a model's layers before any width is chosen: counts that need no image."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from torch import fx

from trtq.cost.count import count_layers, list_kernels, list_ops
from trtq.graph.feed import Feed
from trtq.graph.nodes import get_constant
from trtq.quant.placement import place
from trtq.records.analyze import Outline


def weights_of(graph: fx.GraphModule) -> dict[str, str]:
    """Return the constant behind the weight of every layer with a width, by the layer's name."""
    return {
        q.layer: str(q.source.target)
        for q in place(graph).active
        if q.role == "weight" and q.is_weight
    }


def outline(graph: fx.GraphModule, feed: Feed, weights: Mapping[str, str]) -> Outline:
    """Return the counts of a captured model.

    Args:
        graph: captured and named.
        feed: one batch, a tensor an input.
        weights: of the layers that can have a width, as :func:`weights_of` gives them.
    """
    ops = list_ops(graph, feed)
    counted, first = {c.name: c for c in count_layers(ops)}, dict[str, str]()
    layers = {}
    for name, weight in weights.items():
        shared = first.setdefault(weight, name) != name
        layers[name] = (
            msgspec.structs.replace(counted[name], weights=0) if shared else counted[name]
        )
    return Outline(
        layers=layers,
        left_out=[n for n, c in counted.items() if c.weights and n not in layers],
        other_bytes=_other_bytes(graph, set(weights.values())),
        kernels=list_kernels(graph, ops),
    )


def _other_bytes(graph: fx.GraphModule, weights: set[str]) -> int:
    """Return the bytes of every float constant that is no layer's weight.

    They are biases, norms and folded factors; each counts once, at 4 bytes.
    """
    constants = {
        str(n.target): get_constant(graph, n) for n in graph.graph.nodes if n.op == "get_attr"
    }
    return sum(
        4 * v.numel()
        for name, v in constants.items()
        if v is not None and v.is_floating_point() and name not in weights
    )
