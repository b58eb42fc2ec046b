"""From observed ranges to encodings.

Calibration chooses amax, leaves in float what INT8 cannot carry, and states why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from torch import fx

from trtq.graph.naming import is_softmax
from trtq.graph.nodes import get_constant, operands
from trtq.quant.blocks import block_amax, nvfp4_amax
from trtq.quant.calibrators import INTERVAL_BITS, Asked, Calibrator, find_calibrator
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import LOG_EPSILON
from trtq.quant.formats import INT8, Format
from trtq.quant.histogram import Histogram
from trtq.quant.observe import Range
from trtq.quant.placement import Placement, Quantizer, enforce_partners_
from trtq.quant.weight_ranges import Moments, bias_floor, channel_rows, weight_amax

BULK_PERCENT = 95.0
SOFTMAX_STEPS = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationStats:
    """Statistics of one activation: small enough for a cache file.

    Attributes:
        amax: the magnitude that the highest code stands for, 0 or more; the calibrator chose it.
        lowest: the lowest code it chose, None for two's complement.
        low, high: smallest and largest value seen.
        bulk_rms: root mean square of the 95 % of non-zero values with the smallest magnitude; None
            when all are 0.
        mean, variance: per input channel of the layer that follows, float64 [C]; None where no
            weight follows.
    """

    amax: float
    low: float
    high: float
    bulk_rms: float | None
    mean: torch.Tensor | None = None
    variance: torch.Tensor | None = None
    lowest: int | None = None

    @property
    def moments(self) -> Moments | None:
        """Mean and variance, None where they are not known."""
        if self.mean is None or self.variance is None:
            return None
        return Moments(self.mean, self.variance)


def summarize_all(
    placement: Placement, seen: Mapping[str, Range], calibrator: str, percentile: float
) -> dict[str, ActivationStats]:
    """Return the statistics of every observed activation by ``Quantizer.stats_key``.

    There is one entry for each tensor and width.

    Args:
        placement: the quantizers; those of weights need none.
        seen: what observers saw, by tensor name.
        calibrator: how a range is chosen.
        percentile: for the calibrator of that name, percent.
    """
    wanted = {q.stats_key: q for q in placement.quantizers if not q.is_weight}
    chosen = find_calibrator(calibrator)
    return {
        k: _summarize(seen[q.source.name], chosen, percentile, q.format.bits)
        for k, q in wanted.items()
    }


def summarize(seen: Range, calibrator: str, percentile: float, bits: int = 8) -> ActivationStats:
    """Return the statistics of one observed activation.

    Below 8 bits ``mse`` also chooses the interval of codes; the other calibrators give a tensor
    without negative values unsigned codes.

    Args:
        seen: what the observer saw; its statistic was gathered for the same calibrator.
        calibrator: how ``amax`` is chosen, a name of :data:`trtq.quant.calibrators.CALIBRATORS` or
            of an extension.
        percentile: for the calibrator of that name, percent.
        bits: width of the codes, 2 to 8.

    Raises:
        UsageError: there is no such calibrator.
        CalibrationError: one from outside trtq raised or chose no range.
    """
    return _summarize(seen, find_calibrator(calibrator), percentile, bits)


def _summarize(
    seen: Range, calibrator: Calibrator, percentile: float, bits: int
) -> ActivationStats:
    low, high = seen.low, seen.high
    lowest = 0 if bits < INTERVAL_BITS and low >= 0.0 else None
    request = Asked(max(abs(low), abs(high)), bits, lowest, percentile)
    amax, lowest = calibrator.choose(seen.statistic, request)
    mean = variance = None
    channels = seen.channels
    if channels is not None and channels.sums is not None and channels.squares is not None:
        mean = channels.sums.cpu() / channels.count
        variance = (channels.squares.cpu() / channels.count - mean.square()).clamp_min(0.0)
    return ActivationStats(
        amax=amax,
        low=low,
        high=high,
        bulk_rms=bulk_rms(seen.bulk.hist, int(seen.bulk.zeros)),
        mean=mean,
        variance=variance,
        lowest=lowest,
    )


def bulk_rms(hist: Histogram, zeros: int) -> float | None:
    """Return the root mean square of the smallest 95 % of the non-zero magnitudes.

    Args:
        hist: counts of magnitudes; the first bin also has the zeros.
        zeros: how many values are exactly 0.

    Returns:
        None when every value is 0.
    """
    counts = hist.counts.astype(np.float64)
    counts[0] -= zeros
    total = counts.sum()
    if total <= 0:
        return None
    below = np.cumsum(counts) - counts
    kept = np.clip(BULK_PERCENT / 100.0 * total - below, 0.0, counts)
    return float(np.sqrt(np.sum(kept * hist.centres**2) / kept.sum()))


def outlier_reason(stats: ActivationStats, qmax: int, *, steps: float = 1.0) -> str | None:
    """Return why INT8 cannot carry this activation, or None.

    One step is amax / qmax. When ``steps`` of them exceed the root mean square of the lower 95 % of
    the values, outliers own the range and everything else rounds to -1, 0 or 1: that is what
    residual outliers of vision transformers do. For example, a range of -508 to 508 has steps of 4,
    and a bulk with a root mean square of 1 is lost.

    Args:
        stats: of the activation; its range is the whole one, not the ``amax`` of a calibrator.
        qmax: highest code.
        steps: that the root mean square must be worth.
    """
    amax = max(abs(stats.low), abs(stats.high))
    if stats.bulk_rms is None or steps * amax / qmax <= stats.bulk_rms:
        return None
    return (
        f"its range of {stats.low:.4g} to {stats.high:.4g} is set by outliers: one INT8 step "
        f"would be {amax / qmax:.3g}, "
        f"while 95 % of its values have a root mean square of {stats.bulk_rms:.3g}"
    )


def make_encodings(
    graph: fx.GraphModule,
    placement: Placement,
    stats: Mapping[str, ActivationStats],
    origin: Mapping[str, Any],
) -> Encodings:
    """Return the encodings of every quantizer that remains active, on the CPU.

    Args:
        graph: captured.
        placement: its quantizers; changed in place: a tensor that must remain in float gets a
            ``float_reason``, an activation the lowest code that its calibrator chose.
        stats: by ``Quantizer.stats_key``, from :func:`summarize`.
        origin: what the encodings file says about model, data and method.
    """
    for quantizer in placement.quantizers:
        if not quantizer.is_weight:
            _judge_(quantizer, stats[quantizer.stats_key], force=placement.force_attention)
    enforce_partners_(placement)
    encodings = Encodings(amax={}, formats={}, origin=origin)
    inputs = {q.consumer: q for q in placement.active if not q.is_weight and q.role != "residual"}
    of_input = {
        q.consumer: stats.get(q.stats_key) for q in placement.quantizers if q.role == "input"
    }
    for quantizer in placement.active:
        name, fmt = quantizer.name, quantizer.format
        if not fmt.has_kernel:
            encodings.amin[name], encodings.amax[name] = _ends(graph, quantizer, stats)
        elif fmt.blocked:
            encodings.amax[name] = _blocks(graph, quantizer, of_input)
        elif fmt.kind != "uniform":
            encodings.amax[name] = _largest(graph, quantizer, stats)
        elif quantizer.is_weight:
            feeding = inputs.get(quantizer.consumer)
            encodings.amax[name] = _weight(graph, quantizer, feeding, stats)
        else:
            seen = stats[quantizer.stats_key]
            encodings.amax[name] = torch.tensor(seen.amax, dtype=torch.float32)
            quantizer.format = msgspec.structs.replace(fmt, lowest=seen.lowest)
        encodings.formats[name] = quantizer.format
    encodings.to_cpu_()
    reasons = {q.name: q.float_reason for q in placement.quantizers}
    encodings.left_in_float = {k: why for k, why in reasons.items() if why is not None}
    return encodings


def _ends(
    graph: fx.GraphModule, quantizer: Quantizer, stats: Mapping[str, ActivationStats]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the lowest and the highest value of a tensor with an asymmetric or a log2 format."""
    if quantizer.is_weight:
        weight, axis = get_constant(graph, quantizer.source), quantizer.format.axis
        assert weight is not None
        flat = channel_rows(weight, axis)
        low, high = flat.amin(dim=1), flat.amax(dim=1)
        return (low.reshape([]), high.reshape([])) if axis is None else (low, high)
    seen = stats[quantizer.stats_key]
    shift = LOG_EPSILON if quantizer.format.kind == "log2" else 0.0
    return torch.tensor(seen.low + shift, dtype=torch.float32), torch.tensor(
        seen.high + shift, dtype=torch.float32
    )


def _largest(
    graph: fx.GraphModule, quantizer: Quantizer, stats: Mapping[str, ActivationStats]
) -> torch.Tensor:
    """Return the largest magnitude.

    FP8 keeps its relative precision over 15 binades, so clipping gains nothing; the blocks of an
    NVFP4 activation have ranges of their own, which the tensor's bounds.
    """
    if quantizer.is_weight:
        weight = get_constant(graph, quantizer.source)
        assert weight is not None
        return weight_amax(weight, quantizer.format.axis)
    seen = stats[quantizer.stats_key]
    return torch.tensor(max(abs(seen.low), abs(seen.high)), dtype=torch.float32)


def _blocks(
    graph: fx.GraphModule,
    quantizer: Quantizer,
    of_input: Mapping[fx.Node, ActivationStats | None],
) -> torch.Tensor:
    """Return the largest magnitudes of a weight's blocks."""
    weight, fmt = get_constant(graph, quantizer.source), quantizer.format
    assert weight is not None and isinstance(fmt.block, int)
    if fmt.kind == "fp4":
        return nvfp4_amax(weight)
    seen = of_input.get(quantizer.consumer)
    return block_amax(weight, fmt.block, fmt.qmax, None if seen is None else seen.moments)


def _judge_(quantizer: Quantizer, stats: ActivationStats, *, force: bool) -> None:
    """Keep an activation in float where its values were all 0 or outliers own its range.

    Args:
        quantizer: of the activation.
        stats: of its values.
        force: the user wants attention in INT8 regardless of its values.
    """
    if stats.low == stats.high == 0.0:
        quantizer.float_reason = "it was 0 on every calibration image, so it has no range"
        return
    # The probabilities of a softmax sum to 1, so the many small ones carry the result: they need
    # more than one step.
    if quantizer.format.kind != "uniform" or (force and "trtq_softmax" in quantizer.consumer.meta):
        return
    steps = SOFTMAX_STEPS if is_softmax(quantizer.source) else 1.0
    # Judged at 8 bits for every width: fewer bits are the user's wish, outliers are not.
    reason = outlier_reason(stats, INT8.qmax, steps=steps)
    if reason is not None and quantizer.decided != "user":
        quantizer.float_reason = reason


def _weight(
    graph: fx.GraphModule,
    quantizer: Quantizer,
    feeding: Quantizer | None,
    stats: Mapping[str, ActivationStats],
) -> torch.Tensor:
    """Return the largest magnitudes of a weight with the least error of the layer's output.

    ``feeding`` is the quantizer of the layer's input; without one, and without the input's moments,
    they are the largest that occur.
    """
    weight, node, fmt = get_constant(graph, quantizer.source), quantizer.consumer, quantizer.format
    assert weight is not None
    seen = stats[feeding.stats_key] if feeding is not None else None
    moments = seen.moments if seen is not None else None
    groups = 0 if moments is None else _groups(moments, weight)
    if quantizer.role != "weight" or feeding is None or seen is None or not groups:
        return weight_amax(weight, fmt.axis, qmax=fmt.qmax)
    amax = weight_amax(weight, fmt.axis, moments=moments, groups=groups, qmax=fmt.qmax)
    bias = get_constant(graph, operands(node)[2]) if len(operands(node)) > 2 else None
    input_format = Format(bits=feeding.format.bits, lowest=seen.lowest)
    return bias_floor(amax, bias, seen.amax / input_format.qmax, fmt.qmax)


def _groups(moments: Moments, weight: torch.Tensor) -> int:
    """Return how many groups a layer has whose input has these moments, 0 where they do not fit."""
    groups, rest = divmod(moments.mean.numel(), weight.shape[1])
    return 0 if rest or not groups or weight.shape[0] % groups else groups
