"""Pairs across an attention: the layer of its values, and the layer that reads its result.

An attention weighs values along tokens, channel by channel: a factor that a value's channel is
divided by comes out of it as it went in. Which channel of the first layer is which of the second is
found by running the ops between them, which only move values, on the channels' numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from trtq import ops
from trtq.graph.naming import is_softmax
from trtq.graph.nodes import operands
from trtq.methods.base import MethodContext
from trtq.methods.pairs import Pair, can_divide

PARTS = ("select", "split", "unbind", "getitem", "expand")


@dataclass(frozen=True)
class _Channels:
    """Where the channels of a layer are in a tensor.

    Attributes:
        producer: the layer.
        numbers: the channel of each value, int64; several tensors behind a split.
        weighed: an attention has weighed them.
    """

    producer: fx.Node
    numbers: Any
    weighed: bool = False


class _Tracer(fx.Interpreter):
    """Follows the channels of linear layers through ops that move values and through attentions.

    Attributes:
        channels: by node; none behind other ops.
        reads: tensors of a layer's channels, and who computes with them, by layer.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.channels = dict[fx.Node, _Channels]()
        self.reads = dict[fx.Node, list[tuple[fx.Node, fx.Node]]]()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, and follow what it reads."""
        result = super().run_node(n)
        read = [a for a in n.all_input_nodes if a in self.channels]
        followed = self._followed(n, read, result)
        if followed is not None:
            self.channels[n] = followed
        else:
            for source in read:
                self.reads.setdefault(self.channels[source].producer, []).append((source, n))
        if ops.kind(n) == "linear":
            numbers = torch.arange(result.shape[-1]).expand(result.shape)
            self.channels[n] = _Channels(n, numbers)
        return result

    def _followed(self, n: fx.Node, read: list[fx.Node], result: Any) -> _Channels | None:
        """Return where channels are behind a node; None where it computes with them."""
        if len(read) != 1:
            return None
        found = self.channels[read[0]]
        if _moves(n):
            assert callable(n.target)
            args, kwargs = fx.map_arg((n.args, n.kwargs), self._numbers_of)
            return _Channels(found.producer, n.target(*args, **kwargs), found.weighed)
        probabilities, values = (*operands(n), None, None)[:2]
        if ops.kind(n) != "matmul" or values is not read[0] or not _weighs(probabilities):
            return None
        tokens = found.numbers[..., :1, :]
        if not torch.equal(tokens.expand_as(found.numbers), found.numbers):
            return None
        return _Channels(found.producer, tokens.expand(result.shape), weighed=True)

    def _numbers_of(self, n: fx.Node) -> Any:
        return self.channels[n].numbers if n in self.channels else self.env[n]


def _moves(node: fx.Node) -> bool:
    row = ops.of(node)
    traits = {"reorder", "shape_only", "no_op"}
    return bool(traits & set(row.traits)) or row.name in PARTS


def _weighs(node: object) -> bool:
    return isinstance(node, fx.Node) and is_softmax(node)


def value_pairs(context: MethodContext) -> list[Pair]:
    """Return the pairs of a layer of values and the layers that read the attention's result.

    Args:
        context: one of its samples is run.
    """
    tracer = _Tracer(context.graph)
    with torch.inference_mode():
        tracer.run(*next(iter(context.images(1))))
    quantized = {n for n, _ in context.layers()}
    results = dict.fromkeys(
        operands(n)[0] for n in quantized if ops.kind(n) == "linear" and _weighed(tracer, n)
    )
    ordered = [n for n in context.graph.graph.nodes if n in results]
    return [p for activation in ordered for p in _pairs(context, tracer, activation, quantized)]


def _weighed(tracer: _Tracer, consumer: fx.Node) -> bool:
    found = tracer.channels.get(operands(consumer)[0])
    return found is not None and found.weighed


def _read(numbers: Any) -> set[int]:
    """Return the channels of a tensor, or of all parts of one that was split."""
    parts = [numbers] if isinstance(numbers, torch.Tensor) else list(numbers)
    return {int(c) for part in parts for c in part.unique().tolist()}


def _pairs(
    context: MethodContext, tracer: _Tracer, activation: fx.Node, quantized: set[fx.Node]
) -> Iterator[Pair]:
    """Yield the pair of an attention's result, where nothing else computes with its channels."""
    found = tracer.channels[activation]
    rows = found.numbers.reshape(-1, found.numbers.shape[-1])
    consumers = tuple(activation.users)
    others = [s for s, n in tracer.reads[found.producer] if n not in consumers]
    taken = set(rows[0].tolist())
    if (
        torch.equal(rows[:1].expand_as(rows), rows)
        and len(taken) == rows.shape[1]
        and all(n in quantized and operands(n)[0] is activation for n in consumers)
        and all(taken.isdisjoint(_read(tracer.channels[s].numbers)) for s in others)
        and can_divide(context, found.producer)
        and all(context.constant(operands(n)[1]).shape[1] == rows.shape[1] for n in consumers)
        and all(len(operands(n)[1].users) == 1 for n in consumers)
    ):
        yield Pair(
            producer=found.producer,
            consumers=consumers,
            activation=activation,
            channels=rows.shape[1],
            rows=rows[0].clone(),
        )
