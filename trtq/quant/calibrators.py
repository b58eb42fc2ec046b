"""Calibrators: from what an observer gathered to ``amax``.

They are pure functions on histograms, without tensors or files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trtq import extensions
from trtq.errors import CalibrationError, said_by
from trtq.quant.histogram import NUM_BINS, Histogram

CALIBRATORS = ("max", "percentile", "entropy", "mse", "ema")
Floats = npt.NDArray[np.float64]
ChooseAmax = Callable[[Histogram, int], float]  # counts of magnitudes, highest code


def percentile_amax(hist: Histogram, percentile: float) -> float:
    """Return the magnitude that ``percentile`` percent of the values do not exceed.

    It is accurate to within half a bin.

    Args:
        hist: counts of magnitudes.
        percentile: in (0, 100]; 100 gives the largest value.
    """
    if percentile >= 100.0 or hist.amax == 0.0:
        return hist.amax
    cumulative = np.cumsum(hist.counts)
    index = int(np.searchsorted(cumulative, percentile / 100.0 * cumulative[-1] * (1 - 1e-12)))
    return float(min((index + 0.5) * hist.limit / NUM_BINS, hist.amax))


def clip_errors(hist: Histogram, amax: Floats, qmax: int = 127) -> Floats:
    """Return the mean squared error of symmetric quantization at each candidate ``amax``.

    Quantization rounds to nearest and clamps.

    Args:
        hist: counts of magnitudes.
        amax: float64, shape [K], greater than 0.
        qmax: highest code.
    """
    used = np.flatnonzero(hist.counts)
    values, weights = hist.centres[used], hist.counts[used] / max(hist.num_values, 1)
    if not used.size:
        return np.zeros(len(amax))
    step = (amax / qmax)[:, None]
    quantized = np.minimum(np.rint(values / step), qmax) * step
    errors: Floats = (values - quantized) ** 2 @ weights
    return errors


def mse_amax(
    hist: Histogram, *, qmax: int = 127, candidates: int = 160, lowest: float = 0.2
) -> float:
    """Return the ``amax`` with the smallest mean squared quantization error.

    Candidates are evenly spaced fractions of the largest value.
    """
    if hist.amax == 0.0:
        return 0.0
    tries = hist.amax * np.linspace(lowest, 1.0, candidates)
    return float(tries[int(np.argmin(clip_errors(hist, tries, qmax)))])


def best_interval(positive: Histogram, negative: Histogram, bits: int) -> tuple[float, int]:
    """Return (amax, lowest code) of the ``bits``-bit codes with the least mean squared error.

    The tensor has values on both sides of 0.

    Below 8 bits codes lie in an INT8 container, so any run of 2^bits codes around 0 is exact at run
    time: this is asymmetric quantization whose zero point is an integer by construction.

    Args:
        positive: magnitudes of the values above 0 (the others counted as 0).
        negative: magnitudes of the values below 0 (the others counted as 0).
        bits: 2 to 8.
    """
    best = (np.inf, 0.0, 0)
    half = 1 << (bits - 1)
    starts = (
        [0] if negative.amax == 0.0 else sorted({-max(1, round(half * i / 8)) for i in range(1, 9)})
    )
    for lowest in starts:
        highest = lowest + (1 << bits) - 1
        full = max(positive.amax / highest, negative.amax / -lowest if lowest else 0.0)
        if full == 0.0:
            continue
        steps = full * np.linspace(0.1, 1.0, 91)
        error = clip_errors(positive, steps * highest, highest) * positive.num_values
        if lowest:
            error = error + clip_errors(negative, steps * -lowest, -lowest) * negative.num_values
        i = int(np.argmin(error))
        if error[i] < best[0]:
            best = (float(error[i]), float(steps[i] * highest), lowest)
    return best[1], best[2]


def entropy_amax(hist: Histogram, *, levels: int = 128, candidates: int = 256) -> float:
    """Return the clipping value with the smallest Kullback-Leibler divergence.

    The divergence compares the quantized distribution with the original.

    Migacz, "8-bit Inference with TensorRT" (GTC 2017): for each clipping bin i, P is the histogram
    up to i with everything beyond added to its last bin, Q is P's own bins (without that addition)
    merged into ``levels`` groups and spread evenly over the bins of a group that are not empty; the
    i with the smallest KL(P || Q) wins. As in TensorRT's calibrator the first bin, which holds the
    zeros of a ReLU and carries no range, is left out.

    Args:
        hist: counts of magnitudes.
        levels: number of positive codes.
        candidates: how many clipping bins are tried, evenly spaced between ``levels`` and the last
            used one.
    """
    if hist.amax == 0.0:
        return 0.0
    counts = hist.counts.astype(np.float64)
    counts[0] = 0.0
    last = int(np.flatnonzero(hist.counts)[-1]) + 1
    if counts.sum() == 0.0 or last <= levels:
        return hist.amax
    ends = np.unique(np.linspace(levels, last, candidates).astype(int))
    divergence = [_clip_divergence(counts, int(i), levels) for i in ends]
    best = int(ends[int(np.argmin(divergence))])
    return float(min(best * hist.limit / NUM_BINS, hist.amax))


def _clip_divergence(counts: Floats, end: int, levels: int) -> float:
    kept = counts[:end]
    p = kept.copy()
    p[-1] += counts[end:].sum()
    edges = np.linspace(0, end, levels + 1).round().astype(int)[:-1]
    filled = (kept > 0).astype(np.float64)
    sums, sizes = np.add.reduceat(kept, edges), np.add.reduceat(filled, edges)
    mean = np.divide(sums, sizes, out=np.zeros_like(sums), where=sizes > 0)
    q = np.repeat(mean, np.diff(np.append(edges, end))) * filled
    p_sum, q_sum = p.sum(), q.sum()
    if q_sum == 0.0:
        return float("inf")
    used = p > 0
    # Where clipping put mass on an empty last bin Q has none: a floor keeps the divergence finite
    # and large.
    q_used = np.maximum(q[used] / q_sum, 1e-12)
    p_used = p[used] / p_sum
    return float(np.sum(p_used * np.log(p_used / q_used)))


def histogram_calibrator(name: str, *, percentile: float) -> ChooseAmax:
    """Return the function from a histogram and ``qmax`` to ``amax`` that ``name`` stands for.

    Raises:
        UsageError: it is an extension that cannot be loaded.
    """
    table: dict[str, ChooseAmax] = {
        "percentile": lambda h, _: percentile_amax(h, percentile),
        "entropy": lambda h, qmax: entropy_amax(h, levels=qmax + 1),
        "mse": lambda h, qmax: mse_amax(h, qmax=qmax),
    }
    if name in table:
        return table[name]
    return partial(_extension_amax, name, extensions.load("calibrators", name))


def _extension_amax(name: str, calibrate: Callable[..., Any], hist: Histogram, qmax: int) -> float:
    """Return what a calibrator from outside trtq chooses.

    Raises:
        CalibrationError: it raised, or chose no range.
    """
    try:
        amax = float(calibrate(hist, qmax))
    except Exception as exc:
        raise CalibrationError(f"The calibrator {name} raised {said_by(exc)}") from exc
    if not 0.0 <= amax < float("inf"):
        raise CalibrationError(
            f"The calibrator {name} chose no range",
            f"it returned {amax}, expected a finite number from 0 on",
        )
    return amax


def needs_histogram(name: str) -> bool:
    """Whether a calibrator reads a histogram; those from outside trtq all do."""
    return name not in ("max", "ema")


def calibrator_key(name: str, percentile: float) -> str:
    """Return what identifies a calibrator with its settings, for caches and records.

    Raises:
        UsageError: it is an extension that cannot be loaded.
    """
    if name == "percentile":
        return f"percentile {percentile!r}"
    return name if name in CALIBRATORS else extensions.identity("calibrators", name)


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of each input channel of a layer, float64, shape [C_in]."""

    mean: torch.Tensor
    variance: torch.Tensor


WEIGHT_TRIES = 81
# Fewer codes pay for more clipping: the smallest fraction of the largest weight that is tried, by
# highest code.
SMALLEST_FRACTION = ((100, 0.8), (30, 0.6), (12, 0.45), (0, 0.25))


def channel_rows(weight: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Return ``weight`` with one row for each index of ``axis``, or with one row for None."""
    return (
        weight.reshape(1, -1)
        if axis is None
        else weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
    )


def weight_amax(
    weight: torch.Tensor,
    axis: int | None,
    *,
    moments: Moments | None = None,
    groups: int = 1,
    qmax: int = 127,
) -> torch.Tensor:
    """Return ``amax`` of a weight.

    It is the largest magnitude, or the fraction of it that costs the layer's output least.

    With ``moments`` each output channel takes, out of 81 fractions between 1 and 0.8, the one with
    the smallest expected squared error of its output, ``(sum d_i mean_i)^2 + sum d_i^2 variance_i``
    for the rounding errors ``d`` of its weights and independent inputs. The first term is the shift
    of the channel's mean, which rounding to nearest leaves to chance and which dominates after
    ReLU, where every input has a positive mean (docs/decisions.md has the measurement).

    Args:
        weight: float32, shape [C_out, C_in / groups, ...], any shape without ``moments``.
        axis: the axis that keeps an ``amax`` per index, None for one.
        moments: of the layer's input channels.
        groups: of a convolution.
        qmax: highest code.

    Returns:
        float32, shape [C] or []; 1 for a channel of zeros, whose codes are 0 at any scale.
    """
    flat = channel_rows(weight, axis)
    if moments is not None and axis == 0:
        best = _least_output_error(flat, moments, weight.shape[1], groups, qmax)
    else:
        best = flat.abs().amax(dim=1)
    best = torch.where(best > 0, best, torch.ones_like(best))
    return best.reshape([]) if axis is None else best


CHUNK_VALUES = 1 << 19  # weights per step: the search runs in the cache


def _least_output_error(
    flat: torch.Tensor, moments: Moments, channels: int, groups: int, qmax: int
) -> torch.Tensor:
    """Return the best ``amax`` of each row of ``flat``, float32 [C_out, C_in / groups * taps]."""
    outputs, taps = flat.shape[0], flat.shape[1] // channels
    mean = moments.mean.float().reshape(groups, channels).repeat_interleave(taps, dim=1)
    variance = moments.variance.float().reshape(groups, channels).repeat_interleave(taps, dim=1)
    group_of = torch.arange(outputs) // (outputs // groups)
    rows = max(1, CHUNK_VALUES // flat.shape[1])
    found = []
    for i in range(0, outputs, rows):
        part, groups_here = flat[i : i + rows], group_of[i : i + rows]
        if groups == 1:
            found.append(
                _search_rows(part, partial(_dot, mean[0]), partial(_dot, variance[0]), qmax)
            )
        else:
            m, v = mean[groups_here], variance[groups_here]
            found.append(_search_rows(part, partial(_row_dot, m), partial(_row_dot, v), qmax))
    return torch.cat(found)


def _dot(vector: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return rows @ vector


def _row_dot(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return (rows * weights).sum(dim=1)


def _search_rows(
    flat: torch.Tensor,
    weigh_mean: Callable[[torch.Tensor], torch.Tensor],
    weigh_variance: Callable[[torch.Tensor], torch.Tensor],
    qmax: int,
) -> torch.Tensor:
    largest = flat.abs().amax(dim=1)
    best, best_cost = largest.clone(), torch.full_like(largest, torch.inf)
    error = torch.empty_like(flat)
    smallest = next(f for limit, f in SMALLEST_FRACTION if qmax >= limit)
    for i in range(WEIGHT_TRIES):
        fraction = 1.0 - (1.0 - smallest) * i / (WEIGHT_TRIES - 1)
        scale = (largest * fraction / qmax).clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        torch.div(flat, scale, out=error)
        error.round_().clamp_(-qmax - 1, qmax).mul_(scale).sub_(flat)
        shift = weigh_mean(error)
        cost = weigh_variance(error.square_()).add_(shift.square_())
        better = cost < best_cost
        best, best_cost = (
            torch.where(better, largest * fraction, best),
            torch.where(better, cost, best_cost),
        )
    return best


def bias_floor(
    amax: torch.Tensor, bias: torch.Tensor | None, input_scale: float, qmax: int = 127
) -> torch.Tensor:
    """Return ``amax`` raised where the layer's bias would overflow int32.

    The bias is written as int32 codes of input scale times weight scale.

    TensorRT keeps biases in float, but ONNX Runtime rewrites them to int32 when it loads a Q/DQ
    file. Only channels whose weights are below 2^-23 of their bias are touched: nothing they add to
    the output is lost.

    Args:
        amax: float32, shape [C].
        bias: float32, shape [C], or None.
        input_scale: the activation's scale.
        qmax: highest code.
    """
    if bias is None or amax.ndim == 0:
        return amax
    return torch.maximum(amax, bias.abs() / (input_scale * 2.0**30) * qmax)
