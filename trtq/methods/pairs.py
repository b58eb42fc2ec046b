"""Where a factor per channel can move from one layer into the next.

The move does not change the model's function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from trtq import ops
from trtq.graph.nodes import conv_groups, get_constant, operands, same_sizes, zero_pad
from trtq.graph.post_norm import is_restore
from trtq.methods.base import MethodContext

LARGEST_FACTOR = 1e6  # a nearly dead channel must not push its neighbour out of float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A producer whose output channels can be divided by factors that its consumers absorb.

    The consumers' weights take the factors up.

    Attributes:
        producer: a norm with an affine part, a conv or a linear.
        consumers: the convs and linears that read it; nothing else does.
        activation: the node the consumers read.
        channels: how many.
        restore: the factors of the Mul that gives an add its values back, where an add reads the
            activation, too (:mod:`trtq.graph.post_norm`).
        rows: the producer's channel for each of the consumers', int64 [channels]; None where they
            are the same.
    """

    producer: fx.Node
    consumers: tuple[fx.Node, ...]
    activation: fx.Node
    channels: int
    restore: fx.Node | None = None
    rows: torch.Tensor | None = None


def find_pairs(context: MethodContext) -> tuple[list[Pair], list[str]]:
    """Return the pairs of the graph, and the reasons for layers without one.

    Returns:
        The pairs, in graph order, and a line for each quantized layer behind an operator without
        weights that are not scale-equivariant.
    """
    quantized = dict.fromkeys(n for n, _ in context.layers())
    first: dict[fx.Node, fx.Node] = {}  # of the layers that read an activation
    for layer in quantized:
        first.setdefault(operands(layer)[0], layer)
    pairs, refused = list[Pair](), list[str]()
    for activation, layer in first.items():
        restores = [u for u in activation.users if is_restore(u)]
        consumers = tuple(u for u in activation.users if u not in restores)
        if any(c not in quantized or operands(c)[0] is not activation for c in consumers):
            continue
        producer, passed = _producer(activation)
        shared = producer is not activation and len(producer.users) != 1
        if shared or not can_divide(context, producer):
            refused += _refusal(layer, producer)
        elif _channels_pass(producer, passed) and _fit(context, producer, consumers):
            pairs.append(
                Pair(
                    producer=producer,
                    consumers=consumers,
                    activation=activation,
                    channels=_channels(context, producer),
                    restore=operands(restores[0])[1] if restores else None,
                )
            )
    return pairs, refused


def _producer(activation: fx.Node) -> tuple[fx.Node, list[fx.Node]]:
    """Return the node whose channels an activation has, and what they pass on the way."""
    producer, passed = activation, list[fx.Node]()
    while _passes(producer) and len(operands(producer)[0].users) == 1:
        passed.append(producer)
        producer = operands(producer)[0]
    return producer, passed


def _refusal(layer: fx.Node, producer: fx.Node) -> list[str]:
    """Return why a layer has no pair, where an operator without weights is the reason."""
    row = ops.of(producer)
    if producer.op != "call_function" or row.weighted or row.kind == "norm":
        return []
    name = str(producer.target).removeprefix("aten.")
    return [f"{layer.meta.get('trtq_name')}: {name} is not scale-equivariant"]


def _channels_pass(producer: fx.Node, passed: Sequence[fx.Node]) -> bool:
    """Whether channels remain apart on the way.

    Pools, pads and means work on the last axes: channels must not be among them.
    """
    if all(ops.of(n).cost == "pointwise" for n in passed):
        return True
    return _output_axis(producer) == 1 and producer.meta["val"].ndim == 4


def _fit(context: MethodContext, producer: fx.Node, consumers: Sequence[fx.Node]) -> bool:
    """Whether the input channels of all consumers are the output channels of the producer."""
    channels, axis = _channels(context, producer), _output_axis(producer)
    return all(
        _input_channels(context, c) == channels and _input_axis(c) == axis for c in consumers
    )


def _output_axis(producer: fx.Node) -> int:
    return ops.of(producer).channels % int(producer.meta["val"].ndim)


def _input_axis(consumer: fx.Node) -> int:
    return ops.of(consumer).channels % int(operands(consumer)[0].meta["val"].ndim)


def _passes(node: fx.Node) -> bool:
    """Whether a factor per channel (axis 1 of a map) passes through ``node`` unchanged."""
    row = ops.of(node)
    if row.kind == "pad":
        amounts = zero_pad(node)
        return amounts is not None and not any(amounts[4:])
    if row.name in ("mean", "reshape"):
        before, after = (n.meta["val"] for n in (operands(node)[0], node))
        is_map = before.ndim == 4
        return is_map and (_is_mean_of_map(node) if row.name == "mean" else _flat(before, after))
    return "homogeneous" in row.traits


def _is_mean_of_map(node: fx.Node) -> bool:
    return len(operands(node)) > 1 and {d % 4 for d in operands(node)[1]} == {2, 3}


def _flat(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether a map of one pixel becomes a vector: the number and order of channels remain."""
    return after.ndim == 2 and same_sizes(before.shape[1:], (after.shape[1], 1, 1))


def fold_factors(context: MethodContext, pair: Pair, factors: torch.Tensor) -> None:
    """Divide the producer's channels by ``factors`` and multiply the consumers' weights by them.

    Args:
        context: its graph changes.
        pair: from :func:`find_pairs`.
        factors: float32, shape [channels], greater than 0.
    """
    for constant in _affine(pair.producer):
        value = context.constant(constant)
        own = factors
        if pair.rows is not None:
            own = factors.new_ones(len(value)).index_copy(0, pair.rows.to(factors.device), factors)
        context.fold(constant, value / own.reshape([-1, *[1] * (value.ndim - 1)]))
    for consumer in pair.consumers:
        node = operands(consumer)[1]
        weight = context.constant(node)
        context.fold(node, weight * input_factors(weight, factors))
    if pair.restore is not None:
        context.fold(pair.restore, context.constant(pair.restore) * factors)


def input_factors(weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return ``factors`` shaped to multiply a weight along its input channels.

    Args:
        weight: [C_out, C_in / groups, ...].
        factors: [C_in].

    Returns:
        [1, C_in, 1 ...] without groups, else [C_out, C_in / groups, 1 ...].
    """
    spread = [1] * (weight.ndim - 2)
    if weight.shape[1] == factors.numel():
        return factors.reshape(1, -1, *spread)
    groups = factors.numel() // weight.shape[1]
    per_group = factors.reshape(groups, weight.shape[1])
    return per_group.repeat_interleave(weight.shape[0] // groups, dim=0).reshape(
        weight.shape[0], weight.shape[1], *spread
    )


def _affine(producer: fx.Node) -> list[fx.Node]:
    """Return the operands that shift and scale a result channel by channel."""
    given = operands(producer)
    places = ops.of(producer).affine
    return [given[i] for i in places if len(given) > i and given[i] is not None]


def can_divide(context: MethodContext, producer: fx.Node) -> bool:
    """Whether the producer's output is affine in constants of its own that nothing else reads.

    Args:
        context: the model.
        producer: any node.
    """
    row, given = ops.of(producer), operands(producer)
    if row.kind == "norm":
        scale = row.affine[0]
        if len(given) <= scale or given[scale] is None:
            return False
        if row.channels == -1 and len(given[1]) != 1:
            return False
    elif row.kind not in ("conv", "linear"):
        return False
    return all(
        get_constant(context.graph, c) is not None and len(c.users) == 1 for c in _affine(producer)
    )


def _channels(context: MethodContext, producer: fx.Node) -> int:
    return int(context.constant(_affine(producer)[0]).shape[0])


def _input_channels(context: MethodContext, consumer: fx.Node) -> int:
    """Return how many channels a layer reads, -1 where its weight cannot take factors."""
    weight = get_constant(context.graph, operands(consumer)[1])
    own = weight is not None and len(operands(consumer)[1].users) == 1
    if weight is None or not own or ops.kind(consumer) not in ("conv", "linear"):
        return -1
    groups = conv_groups(consumer) if ops.kind(consumer) == "conv" else 1
    return int(weight.shape[1]) * groups
