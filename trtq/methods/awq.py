"""AWQ: enlarge the weights that read large activations before the weights are rounded."""

from __future__ import annotations

import msgspec
import torch

from trtq.graph.naming import node_name
from trtq.methods.base import Method, MethodContext, Report, channel_axis, needs
from trtq.methods.pairs import LARGEST_FACTOR, Pair, find_pairs, fold_factors
from trtq.methods.scaling import Watch
from trtq.methods.value_pairs import value_pairs
from trtq.quant.blocks import block_amax, nvfp4_amax
from trtq.quant.fake_quantize import fake_quantize
from trtq.quant.formats import Format
from trtq.quant.placement import Quantizer
from trtq.quant.weight_ranges import Moments, weight_amax


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        grid: exponents that are tried, at equal distances from 0 to 1.
        images: calibration images whose activations are looked at.
        rows: positions of each activation that output errors are measured on.
    """

    grid: int = 20
    images: int = 32
    rows: int = 512


def awq_factors(magnitude: torch.Tensor, exponent: float) -> torch.Tensor:
    """Return the factors of the weights, magnitude^exponent with the ends around 1.

    See Lin et al. 2024, eq. 5; the largest and the smallest factor are each other's inverses, as in
    the authors' code.

    Args:
        magnitude: mean magnitude of each input channel, float32 [C].
        exponent: 0, which moves nothing, to 1.

    >>> awq_factors(torch.tensor([16.0, 1.0, 4.0]), 0.5).tolist()
    [2.0, 0.5, 1.0]
    """
    live = magnitude > 0
    if not bool(live.any()):
        return torch.ones_like(magnitude)
    raised = torch.where(live, magnitude, torch.ones_like(magnitude)).pow(exponent)
    ends = raised[live]
    factors = raised / (ends.max() * ends.min()).sqrt()
    factors = factors.clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
    return torch.where(live, factors, torch.ones_like(factors))


def rounded_weight(weight: torch.Tensor, fmt: Format, rows: torch.Tensor) -> torch.Tensor:
    """Return a weight on the nearest codes of its format, its ranges as calibration finds them.

    Args:
        weight: float32 [N, K].
        fmt: of the weight; K is a multiple of its blocks.
        rows: what the weight is multiplied with, float32 [rows, K].
    """
    wide = rows.double()
    moments = Moments(mean=wide.mean(dim=0), variance=wide.var(dim=0, unbiased=False))
    if fmt.kind == "fp4":
        amax = nvfp4_amax(weight)
    elif isinstance(fmt.block, int):
        amax = block_amax(weight, fmt.block, fmt.qmax, moments)
    else:
        amax = weight_amax(weight, fmt.axis, moments=moments, qmax=fmt.qmax)
    scale = amax / fmt.qmax
    rounded: torch.Tensor = fake_quantize(
        weight, scale, None, fmt.axis, fmt.qmin, fmt.qmax, "", fmt.kind
    )
    return rounded


def _fits(quantizer: Quantizer) -> bool:
    """Whether a weight has few bits, in equal steps or NVFP4, and a scale for each row or block."""
    fmt = quantizer.format
    return fmt.bits < 8 and fmt.has_kernel and fmt.axis is not None


def _pairs(context: MethodContext) -> list[tuple[Pair, list[Quantizer]]]:
    """Return the pairs all of whose consumers are linear layers with weights alone in few bits."""
    inputs = {q.consumer for q in context.placement.active if _has_one_scale(q)}
    weights = {node: q for node, q in context.layers() if node not in inputs}
    found = []
    for pair in (*find_pairs(context)[0], *value_pairs(context)):
        own = [weights[c] for c in pair.consumers if c in weights]
        if len(own) == len(pair.consumers) and all(map(_fits, own)):
            found.append((pair, own))
    return found


def _has_one_scale(quantizer: Quantizer) -> bool:
    """Whether an input has one scale, which channels of different sizes would share."""
    return not quantizer.is_weight and quantizer.format.kind != "fp4"


def best_exponent(
    rows: torch.Tensor, weights: list[tuple[torch.Tensor, Format]], grid: int
) -> tuple[float, torch.Tensor, float]:
    """Return the exponent with the least output error.

    Args:
        rows: inputs, float32 [rows, C].
        weights: of the layers that read them, float32 [N, C], and their formats.
        grid: exponents that are tried.

    Returns:
        The exponent; its factors, float32 [C]; and its squared error over that of no factors.
    """
    magnitude = rows.abs().mean(dim=0)
    errors = dict[float, float]()
    for i in range(grid):
        exponent = i / grid
        factors = awq_factors(magnitude, exponent) if i else torch.ones_like(magnitude)
        read = rows / factors
        off = (rounded_weight(w * factors, f, read) / factors - w for w, f in weights)
        errors[exponent] = sum(float((rows @ o.T).square().sum()) for o in off)
    best = min(errors, key=lambda e: errors[e])
    factors = awq_factors(magnitude, best) if best else torch.ones_like(magnitude)
    return best, factors, errors[best] / errors[0.0] if errors[0.0] else 1.0


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Fold the factors with the least output error into every pair.

    A pair whose activation an add reads, too, is left alone.

    Returns:
        ``exponent`` by layer, 0 for one left as it is, and ``error``: the mean over the pairs of
        the squared output error over that without factors.
    """
    pairs = [(p, own) for p, own in _pairs(context) if p.restore is None]
    axes = {p.activation.name: channel_axis(p.consumers[0]) for p, _ in pairs}
    watch = Watch(context.graph, axes, arguments.rows).over(context.images(arguments.images))
    context.begin("AWQ", len(pairs))
    chosen, gained = dict[str, float](), list[float]()
    for pair, own in pairs:
        weights = [(context.constant(q.source), q.format) for q in own]
        rows = watch.samples[pair.activation.name]
        exponent, factors, error = best_exponent(rows, weights, arguments.grid)
        if exponent:
            fold_factors(context, pair, factors)
        chosen[node_name(pair.consumers[0])] = exponent
        gained.append(error)
        context.advance(1)
    return {"exponent": chosen, "error": round(sum(gained) / max(1, len(gained)), 4)}


METHOD = Method(
    name="awq",
    summary="AWQ: enlarge weights of few bits that read large activations, where that is exact.",
    label="folded",
    stage="before",
    source="Lin et al. 2024, AWQ, eq. 4-5; factors folded into norms and layers before",
    arguments=Arguments(),
    run=run,
    exact=True,
    excludes=("qads",),
    not_applicable_reason=needs(
        (
            lambda context: any(p.restore is None for p, _ in _pairs(context)),
            "no linear layer with weights of fewer than 8 bits alone, as with --bits w4a16:128, "
            "reads a norm or a layer through exact ops only",
        )
    ),
)
