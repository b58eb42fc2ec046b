"""Extreme channels: one tensor, one scale, and channels whose ranges differ by orders of magnitude.

They are found in the weights, before calibration, and confirmed on a few samples. A channel range
is balanced by factors that move exactly into the next layer; a layer behind an activation that is
not scale-equivariant is left in float.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import fx

from trtq import ops
from trtq.data.metrics import ratio_db
from trtq.graph.naming import node_name
from trtq.graph.nodes import get_constant, operands
from trtq.methods.base import Method, MethodContext, Report, channel_axis, needs, weight_and_bias
from trtq.methods.pairs import Pair, find_pairs, fold_factors
from trtq.methods.scaling import Watch, output_error, weight_matrix, widths
from trtq.methods.smooth import best_strength

EXTREME = 64.0  # largest over low range: at 8 bits a low channel then has two codes
LIKELY = 16.0  # of the weights, which only bound what the samples show
LOW = 0.1  # quantile of the channel ranges that is called low
POOR_DB = 15.0  # a layer's own outputs with both operands at 8 bits; 30 dB and more are usual
BITS = (8, 8)
IMAGES, ROWS = 8, 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Extreme:
    """A tensor with an extreme channel-range ratio.

    Attributes:
        tensor: name of the activation.
        layers: names of the layers that read it.
        ratio: largest over low channel range on the samples.
        sqnr_db: of these layers' outputs with both operands at 8 bits.
        pair: where factors can move; None where none can.
    """

    tensor: str
    layers: tuple[str, ...]
    ratio: float
    sqnr_db: float
    pair: Pair | None


def range_ratio(ranges: torch.Tensor) -> float:
    """Return the largest over the low range of the channels that have values.

    Low is the range below which a tenth of the channels is.

    Args:
        ranges: largest magnitude of each channel, float32 [C].

    >>> range_ratio(torch.tensor([100.0, 1.0, 1.0, 0.0]))
    100.0
    """
    live = ranges[ranges > 0]
    if not len(live):
        return 1.0
    ordered = live.sort().values
    return float(ordered[-1] / ordered[math.ceil(LOW * (len(live) - 1))])


def find_extremes(context: MethodContext, ratio: float = EXTREME) -> list[Extreme]:
    """Return the activations with extreme channels whose layers lose by them, in graph order.

    Samples are read only where the weights make one likely. Channels that nearly nothing depends on
    may have any range.

    Args:
        context: the model.
        ratio: largest over low range from which a tensor is extreme.
    """
    readers = _likely(context, min(ratio, LIKELY))
    if not readers:
        return []
    pairs = {p.activation: p for p in find_pairs(context)[0]}
    watch = _watched(context, readers, IMAGES, ROWS)
    extremes = []
    for activation, layers in readers.items():
        amax = watch.amax[activation.name]
        seen = range_ratio(amax)
        if seen < ratio:
            continue
        sqnr = _sqnr(context, layers, watch.samples[activation.name], amax)
        if sqnr < POOR_DB:
            extremes.append(
                Extreme(
                    tensor=node_name(activation),
                    layers=tuple(node_name(n) for n in layers),
                    ratio=seen,
                    sqnr_db=sqnr,
                    pair=pairs.get(activation),
                )
            )
    return extremes


def _likely(context: MethodContext, ratio: float) -> dict[fx.Node, list[fx.Node]]:
    """Return activations whose channels the weights before them spread, and who reads them.

    Args:
        context: the model.
        ratio: from which the weights make an extreme tensor likely.
    """
    readers: dict[fx.Node, list[fx.Node]] = {}
    for layer, _ in context.layers():
        if ops.kind(layer) in ("conv", "linear"):
            readers.setdefault(operands(layer)[0], []).append(layer)
    return {a: ls for a, ls in readers.items() if _spread(context, a) >= ratio}


def _spread(context: MethodContext, activation: fx.Node) -> float:
    """Return the range ratio that the weights behind an activation bound.

    Channel c of ``W x + b`` is at most ``sum |W_c| max|x| + |b_c|``; with ``max|x|`` of 1 the
    bounds compare. 1 where no convolution or linear is behind the activation.
    """
    node = activation
    while ops.of(node).cost == "pointwise" and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    if ops.kind(node) not in ("conv", "linear"):
        return 1.0
    given, bias = weight_and_bias(context.graph, node)
    weight = get_constant(context.graph, given)
    if weight is None:
        return 1.0
    bound = weight.flatten(1).abs().sum(dim=1)
    return range_ratio(bound if bias is None else bound + context.constant(bias).abs())


def _watched(
    context: MethodContext, readers: Mapping[fx.Node, Sequence[fx.Node]], images: int, rows: int
) -> Watch:
    axes = {a.name: channel_axis(layers[0]) for a, layers in readers.items()}
    return Watch(context.graph, axes, rows).over(context.images(images))


def _even(weight: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return a weight whose outputs all have the same power on sampled rows.

    Errors then count relative to each output: a large channel does not hide what the others lose.
    Rows of the weight that give nothing are left out.
    """
    power = (rows @ weight.T).square().sum(dim=0).sqrt()
    live = power > 0
    return weight[live] / power[live].unsqueeze(1)


def _sqnr(
    context: MethodContext, layers: Sequence[fx.Node], rows: torch.Tensor, amax: torch.Tensor
) -> float:
    """Return the worst signal over error of the layers on sampled rows, mean of outputs, dB."""
    ones = torch.ones_like(amax)
    worst = math.inf
    for layer in layers:
        weight = _even(weight_matrix(context, layer, len(amax)), rows)
        error = float(output_error(rows, amax, [weight], ones, BITS))
        worst = min(worst, ratio_db(float(len(weight)), error))
    return worst


def _extreme_pairs(context: MethodContext, ratio: float) -> Iterator[tuple[Pair, float]]:
    for extreme in find_extremes(context, ratio):
        if extreme.pair is not None and extreme.pair.restore is None:
            yield extreme.pair, extreme.ratio


class Arguments(msgspec.Struct, frozen=True):
    """Arguments of the method.

    Attributes:
        ratio: largest over low channel range from which an activation is extreme.
        images: calibration images whose channels are looked at.
        rows: positions of each activation that output errors are measured on.
    """

    ratio: float = EXTREME
    images: int = IMAGES
    rows: int = ROWS


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Fold factors into each pair with an extreme tensor, where that lowers its output error.

    Returns:
        ``balanced``: ratios ``before`` and ``after`` by the name of each activation.
    """
    balanced: dict[str, dict[str, float]] = {}
    for pair, before in list(_extreme_pairs(context, arguments.ratio)):
        readers = {pair.activation: pair.consumers}
        watch = _watched(context, readers, arguments.images, arguments.rows)
        amax, rows = watch.amax[pair.activation.name], watch.samples[pair.activation.name]
        weights = [_even(weight_matrix(context, c, pair.channels), rows) for c in pair.consumers]
        best, factors = best_strength(rows, amax, weights, widths(context, pair.consumers[0]))
        if best is None:
            continue
        fold_factors(context, pair, factors)
        after = range_ratio(amax / factors)
        balanced[node_name(pair.activation)] = {
            "before": round(before, 1),
            "after": round(after, 1),
        }
    return {"balanced": balanced}


METHOD = Method(
    name="balance",
    summary="Balance the channels of activations with an extreme range ratio, where that is exact.",
    label="folded",
    stage="before",
    source="Nagel et al. 2019, Data-Free Quantization; factors as in Xiao et al. 2023, eq. 4, for "
    "the least output error",
    arguments=Arguments(),
    run=run,
    exact=True,
    not_applicable_reason=needs(
        (
            lambda context: next(_extreme_pairs(context, EXTREME), None) is not None,
            f"no activation between two layers has channels whose ranges differ {EXTREME:g} times "
            "or more and is scale-equivariant",
        )
    ),
)
