"""Where a factor per channel can move from one layer into the next.

The move does not change the model's function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from trtq.graph.naming import LAST_AXIS, NORM_AFFINE, NORMS, WEIGHTED
from trtq.graph.normalize import PADS, get_constant, operands
from trtq.methods.base import Workbench, weight_and_bias

aten = torch.ops.aten
LARGEST_FACTOR = 1e6  # a nearly dead channel must not push its neighbour out of float32
# f(c x) = c f(x) for every c > 0, channel by channel. Never SiLU, GELU, hardswish, ReLU6: there it
# would not be exact.
HOMOGENEOUS = (
    aten.relu.default,
    aten.leaky_relu.default,
    aten.max_pool2d.default,
    aten.avg_pool2d.default,
    aten.adaptive_avg_pool2d.default,
)
# Weights with output channels on axis 0. Transposed convolutions have them on axis 1.
LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A producer whose output channels can be divided by factors that its consumers absorb.

    The consumers' weights take the factors up.

    Attributes:
        producer: a norm with an affine part, a conv or a linear.
        consumers: the convs and linears that read it; nothing else does.
        activation: the node the consumers read.
        channels: how many.
    """

    producer: fx.Node
    consumers: tuple[fx.Node, ...]
    activation: fx.Node
    channels: int


def find_pairs(bench: Workbench) -> tuple[list[Pair], list[str]]:
    """Return the pairs of the graph, and the reasons for layers without one.

    Those layers are behind an activation that no factor passes.
    """
    quantized = {n for n, _ in bench.layers()}
    found, refused, seen = list[Pair](), list[str](), set[fx.Node]()
    for node in bench.graph.graph.nodes:
        if node not in quantized:
            continue
        activation = operands(node)[0]
        if activation in seen:
            continue
        seen.add(activation)
        consumers = tuple(activation.users)
        if any(c not in quantized or operands(c)[0] is not activation for c in consumers):
            continue
        producer, passed = activation, list[fx.Node]()
        while _passes(producer) and len(operands(producer)[0].users) == 1:
            passed.append(producer)
            producer = operands(producer)[0]
        if not _can_divide(bench, producer) or (
            producer is not activation and len(producer.users) != 1
        ):
            if producer.op == "call_function" and producer.target not in (*WEIGHTED, *NORMS):
                refused.append(
                    f"{node.meta.get('trtq_name')}: "
                    f"{str(producer.target).removeprefix('aten.')} lets no factor through"
                )
            continue
        channels, axis = _channels(bench, producer), _output_axis(producer)
        pooled = any(
            n.target is not aten.relu.default and n.target is not aten.leaky_relu.default
            for n in passed
        )
        if pooled and (axis != 1 or producer.meta["val"].ndim != 4):
            continue  # pools, pads and means work on the last axes: channels must not be among them
        if all(_input_channels(bench, c) == channels and _input_axis(c) == axis for c in consumers):
            found.append(
                Pair(
                    producer=producer, consumers=consumers, activation=activation, channels=channels
                )
            )
    return found, refused


def _output_axis(producer: fx.Node) -> int:
    last = int(producer.meta["val"].ndim) - 1
    return last if producer.target in LAST_AXIS else 1


def _input_axis(consumer: fx.Node) -> int:
    return (
        int(operands(consumer)[0].meta["val"].ndim) - 1
        if consumer.target is aten.linear.default
        else 1
    )


def _passes(node: fx.Node) -> bool:
    """Whether a factor per channel (axis 1 of a map) passes through ``node`` unchanged."""
    if node.target in HOMOGENEOUS:
        return True
    if node.target not in (aten.mean.dim, aten.reshape.default, *PADS):
        return False
    before, after = (n.meta["val"] for n in (operands(node)[0], node))
    if node.target in PADS:
        amounts, rest = operands(node)[1], operands(node)[2:]
        return rest in (
            (),
            ("constant",),
            ("constant", None),
            ("constant", 0),
            ("constant", 0.0),
            (0,),
            (0.0,),
        ) and not any(amounts[4:])
    if before.ndim != 4:
        return False
    if node.target is aten.mean.dim:
        return {d % 4 for d in operands(node)[1]} == {2, 3}
    # A map of one pixel becomes a vector: the number and order of channels stay.
    return bool(
        after.ndim == 2 and before.shape[1] == after.shape[1] and before.shape[2:].numel() == 1
    )


def fold_factors(bench: Workbench, pair: Pair, factors: torch.Tensor) -> None:
    """Divide the producer's channels by ``factors`` and multiply the consumers' weights by them.

    Args:
        bench: its graph changes.
        pair: from :func:`find_pairs`.
        factors: float32, shape [channels], greater than 0.
    """
    for constant in _affine(bench, pair.producer):
        value = bench.constant(constant)
        bench.fold(constant, value / factors.reshape([-1, *[1] * (value.ndim - 1)]))
    for consumer in pair.consumers:
        node = operands(consumer)[1]
        weight = bench.constant(node)
        bench.fold(node, weight * input_factors(weight, factors))


def input_factors(weight: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Return ``factors`` shaped to multiply a weight along its input channels.

    The weight is [C_out, C_in / groups, ...].
    """
    spread = [1] * (weight.ndim - 2)
    if weight.shape[1] == factors.numel():
        return factors.reshape(1, -1, *spread)
    groups = factors.numel() // weight.shape[1]
    per_group = factors.reshape(groups, weight.shape[1])
    return per_group.repeat_interleave(weight.shape[0] // groups, dim=0).reshape(
        weight.shape[0], weight.shape[1], *spread
    )


def _affine(bench: Workbench, producer: fx.Node) -> list[fx.Node]:
    given = operands(producer)
    if producer.target in NORMS:
        return [
            given[i]
            for i in NORM_AFFINE[producer.target]
            if len(given) > i and given[i] is not None
        ]
    weight, bias = weight_and_bias(bench.graph, producer)
    return [weight] if bias is None else [weight, bias]


def _can_divide(bench: Workbench, producer: fx.Node) -> bool:
    """Whether the producer's output is affine in constants of its own that nothing else reads."""
    given = operands(producer)
    if producer.target in NORMS:
        constants = [given[i] if len(given) > i else None for i in NORM_AFFINE[producer.target]]
        usable = constants[0] is not None and (
            producer.target not in LAST_AXIS or len(given[1]) == 1
        )
    elif producer.target in LAYERS:
        constants, usable = list(given[1:3]), True
    else:
        return False
    present = [c for c in constants if c is not None]
    return usable and all(
        get_constant(bench.graph, c) is not None and len(c.users) == 1 for c in present
    )


def _channels(bench: Workbench, producer: fx.Node) -> int:
    return int(bench.constant(_affine(bench, producer)[0]).shape[0])


def _input_channels(bench: Workbench, consumer: fx.Node) -> int:
    weight = get_constant(bench.graph, operands(consumer)[1])
    if weight is None or len(operands(consumer)[1].users) != 1 or consumer.target not in LAYERS:
        return -1
    groups = operands(consumer)[6] if len(operands(consumer)) > 6 else 1
    return int(weight.shape[1]) * int(groups)
