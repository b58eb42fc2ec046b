"""SmoothQuant: move difficult activation channels into the weights that read them."""

from __future__ import annotations

import msgspec
import torch

from trtq.data.metrics import ratio_db
from trtq.graph.naming import node_name
from trtq.methods.base import Method, MethodContext, Report, channel_axis, needs
from trtq.methods.pairs import LARGEST_FACTOR, Pair, find_pairs, fold_factors
from trtq.methods.scaling import Watch, output_error, weight_matrix, widths
from trtq.methods.value_pairs import value_pairs

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)
RESTORE_DB = 1.0  # of output error that a Mul in front of an add must save


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        strength: m of eq. 4 for every layer, 0 to 1; below 0 it is searched per layer.
        images: calibration images whose channels are looked at.
        rows: positions of each activation that output errors are measured on.
    """

    strength: float = -1.0
    images: int = 32
    rows: int = 512


def smoothing_factors(
    activation: torch.Tensor, weight: torch.Tensor, strength: float
) -> torch.Tensor:
    """Return s_j = max|X_j|^m / max|W_j|^(1-m), scaled to a geometric mean of 1.

    See Xiao et al. 2023, eq. 4.

    Args:
        activation: largest magnitude of each channel, float32 [C].
        weight: largest magnitude of the weights that read it, float32 [C].
        strength: m, 0 (nothing moves to the weights beyond what they can take) to 1.

    >>> smoothing_factors(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 1.0]), 0.5).tolist()
    [2.0, 0.5]
    """
    # A channel without values, or that nothing reads, moves nothing.
    live = (activation > 0) & (weight > 0)
    safe = (
        torch.where(live, activation, torch.ones_like(activation)),
        torch.where(live, weight, torch.ones_like(weight)),
    )
    factors = safe[0].pow(strength) / safe[1].pow(1.0 - strength)
    if bool(live.any()):
        factors = (factors / factors[live].log().mean().exp()).clamp(
            1.0 / LARGEST_FACTOR, LARGEST_FACTOR
        )
    return torch.where(live, factors, torch.ones_like(factors))


def best_strength(
    rows: torch.Tensor,
    amax: torch.Tensor,
    weights: list[torch.Tensor],
    bits: tuple[int, int],
    strengths: tuple[float, ...] = STRENGTHS,
) -> tuple[float | None, torch.Tensor]:
    """Return the strength with the least output error and its factors.

    Args:
        rows: float32 [rows, C].
        amax: largest magnitude of each channel, float32 [C].
        weights: of the layers that read them, float32 [outputs * taps, C].
        bits: of the activation and of the weights.
        strengths: that are tried.

    Returns:
        The strength and the factors, float32 [C]; (None, ones) when no strength has a smaller error
        than the unscaled layers.
    """
    largest = torch.stack([w.abs().amax(dim=0) for w in weights]).amax(dim=0)
    options: dict[float | None, torch.Tensor] = {None: torch.ones_like(amax)}
    options |= {m: smoothing_factors(amax, largest, m) for m in strengths}
    best = min(options, key=lambda m: float(output_error(rows, amax, weights, options[m], bits)))
    return best, options[best]


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Fold factors into every pair.

    The strength is the one with the least output error unless one is given. Where an add reads the
    activation beside the layers, a Mul gives it back what was divided out: it must pay.

    Returns:
        ``strength`` by layer, None for one left as it is; ``refused``: why layers have no pair;
        with a Mul also ``restored``: names of activations, and ``label``.
    """
    pairs, refused = find_pairs(context)
    pairs += value_pairs(context)
    axes = {p.activation.name: channel_axis(p.consumers[0]) for p in pairs}
    watch = Watch(context.graph, axes, arguments.rows).over(context.images(arguments.images))
    chosen: dict[str, float | None] = {}  # None: left as it is
    given = arguments.strength
    restored = list[str]()
    for pair in pairs:
        best, factors = _chosen(context, pair, watch, given)
        chosen[node_name(pair.consumers[0])] = best
        if best is not None:
            fold_factors(context, pair, factors)
            restored += [] if pair.restore is None else [node_name(pair.activation)]
    report: Report = {"strength": chosen, "refused": refused}
    return {**report, "restored": restored, "label": "ops"} if restored else report


def _chosen(
    context: MethodContext, pair: Pair, watch: Watch, given: float
) -> tuple[float | None, torch.Tensor]:
    """Return the strength for a pair, None to leave it as it is, and its factors."""
    amax, rows = watch.amax[pair.activation.name], watch.samples[pair.activation.name]
    weights = [weight_matrix(context, c, pair.channels) for c in pair.consumers]
    if given >= 0:
        largest = torch.stack([w.abs().amax(dim=0) for w in weights]).amax(dim=0)
        return given, smoothing_factors(amax, largest, given)
    bits = widths(context, pair.consumers[0])
    best, factors = best_strength(rows, amax, weights, bits)
    if best is None or pair.restore is None:
        return best, factors
    before, after = (
        float(output_error(rows, amax, weights, f, bits)) for f in (torch.ones_like(amax), factors)
    )
    return (best if ratio_db(before, after) >= RESTORE_DB else None), factors


METHOD = Method(
    name="smooth",
    summary="SmoothQuant: move large activation channels into the weights that read them, where "
    "that is exact.",
    label="folded",
    stage="before",
    source="Xiao et al. 2023, SmoothQuant, eq. 4; the strength searched per layer for the least "
    "output error",
    arguments=Arguments(),
    run=run,
    exact=True,
    excludes=("qads",),
    not_applicable_reason=needs(
        (
            lambda context: find_pairs(context)[0] or value_pairs(context),
            "no norm, conv or linear hands its channels on through exact ops only",
        )
    ),
)
