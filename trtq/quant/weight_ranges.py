"""The range of a weight: the fraction of its largest magnitude that costs the output least."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of each input channel of a layer.

    Attributes:
        mean, variance: float64 [C_in].
    """

    mean: torch.Tensor
    variance: torch.Tensor


WEIGHT_TRIES = 81
# Fewer codes pay for more clipping: the smallest fraction of the largest weight that is tried, by
# highest code.
SMALLEST_FRACTION = ((100, 0.8), (30, 0.6), (12, 0.45), (0, 0.25))


def channel_rows(weight: torch.Tensor, axis: int | None) -> torch.Tensor:
    """Return ``weight`` with one row for each index of an axis.

    Args:
        weight: any shape.
        axis: None for one row of all values.

    Returns:
        [size of the axis, the rest].
    """
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
    mean, variance = (
        m.to(flat.device).float().reshape(groups, channels).repeat_interleave(taps, dim=1)
        for m in (moments.mean, moments.variance)
    )
    group_of = torch.arange(outputs, device=flat.device) // (outputs // groups)
    rows = max(1, CHUNK_VALUES // flat.shape[1])
    row_ranges = []
    for i in range(0, outputs, rows):
        part, groups_here = flat[i : i + rows], group_of[i : i + rows]
        if groups == 1:
            row_ranges.append(
                search_rows(part, partial(_dot, mean[0]), partial(_dot, variance[0]), qmax)
            )
        else:
            m, v = mean[groups_here], variance[groups_here]
            row_ranges.append(search_rows(part, partial(row_dot, m), partial(row_dot, v), qmax))
    return torch.cat(row_ranges)


def _dot(vector: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return rows @ vector


def row_dot(weights: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return the sums of rows with weights of their own.

    Args:
        weights: [rows, values].
        rows: [rows, values].

    Returns:
        [rows].
    """
    return (rows * weights).sum(dim=1)


def search_rows(
    flat: torch.Tensor,
    weigh_mean: Callable[[torch.Tensor], torch.Tensor],
    weigh_variance: Callable[[torch.Tensor], torch.Tensor],
    qmax: int,
) -> torch.Tensor:
    """Return the best ``amax`` of each row: that with the least ``shift^2 + variance``.

    Args:
        flat: float32 [rows, values].
        weigh_mean: gives the shift of each row [rows] from its rounding errors [rows, values].
        weigh_variance: gives the variance of each row from the squares of these errors.
        qmax: highest code.

    Returns:
        float32 [rows], between the smallest fraction that is tried and the largest magnitude.
    """
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

    TensorRT keeps biases in float, but ONNX Runtime rewrites them to int32 codes of input scale
    times weight scale when it loads a Q/DQ file. Only channels whose weights are below 2^-23 of
    their bias are touched: nothing they add to the output is lost.

    Args:
        amax: float32, shape [C]; one for the whole tensor is returned as it is.
        bias: float32, shape [C], or None.
        input_scale: the activation's scale.
        qmax: highest code of the weight.
    """
    if bias is None or amax.ndim == 0:
        return amax
    return torch.maximum(amax, bias.abs() / (input_scale * 2.0**30) * qmax)
