"""Cross-layer equalisation: equalise the weight magnitudes of the channels between two layers.

After it the weights on both sides of a channel are of like size.
"""

from __future__ import annotations

import msgspec
import torch

from trtq import ops
from trtq.graph.naming import node_name
from trtq.graph.nodes import operands
from trtq.methods.base import Method, MethodContext, Report, needs
from trtq.methods.pairs import LARGEST_FACTOR, Pair, find_pairs, fold_factors


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        rounds: over all pairs, at most.
    """

    rounds: int = 10


def equalizing_factors(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return s_i = sqrt(r1_i / r2_i) for each channel.

    Dividing the left rows and multiplying the right columns by s_i makes both sqrt(r1_i r2_i).

    Args:
        left: largest magnitude of each output channel of the first layer, float32 [C].
        right: largest magnitude of each input channel of the second, float32 [C].

    >>> equalizing_factors(torch.tensor([4.0, 1.0]), torch.tensor([1.0, 0.0])).tolist()
    [2.0, 1.0]
    """
    live = (left > 0) & (right > 0)
    ones = torch.ones_like(left)
    factors = torch.where(live, left, ones).sqrt() / torch.where(live, right, ones).sqrt()
    return factors.clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)


def _between_weights(context: MethodContext) -> list[Pair]:
    return [
        p for p in find_pairs(context)[0] if ops.of(p.producer).weighted and len(p.consumers) == 1
    ]


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Equalise every pair repeatedly, until the factors are within 1 % of 1.

    Returns:
        ``pairs``: names of the second layers; ``largest_factor`` of all rounds.
    """
    pairs = _between_weights(context)
    largest = 1.0
    for _ in range(arguments.rounds):
        moved = 1.0
        for pair in pairs:
            first, second = (
                context.constant(operands(n)[1]) for n in (pair.producer, pair.consumers[0])
            )
            left = first.flatten(1).abs().amax(dim=1)
            columns = second.movedim(1, 0).flatten(1).abs().amax(dim=1)
            if len(columns) != pair.channels:  # grouped: each group has inputs of its own
                groups = pair.channels // second.shape[1]
                columns = (
                    second.reshape(groups, -1, second.shape[1], *second.shape[2:])
                    .movedim(2, 1)
                    .flatten(2)
                    .abs()
                    .amax(dim=2)
                    .flatten()
                )
            factors = equalizing_factors(left, columns)
            fold_factors(context, pair, factors)
            moved = max(moved, float(factors.max()), float(1.0 / factors.min()))
        largest = max(largest, moved)
        if moved < 1.01:
            break
    return {"pairs": [node_name(p.consumers[0]) for p in pairs], "largest_factor": largest}


METHOD = Method(
    name="equalize",
    summary="Cross-layer equalisation: balance the weights of neighbouring layers channel by "
    "channel.",
    label="folded",
    stage="before",
    source="Nagel et al. 2019, Data-Free Quantization, eq. 11",
    arguments=Arguments(),
    run=run,
    exact=True,
    not_applicable_reason=needs(
        (_between_weights, "no two convs or linears have only ReLU or pooling between them")
    ),
)
