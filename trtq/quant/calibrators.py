"""Calibrators: what each gathers of an activation, and how that becomes ``amax``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from trtq import extensions
from trtq.errors import CalibrationError, UsageError, said_by
from trtq.quant.formats import Format
from trtq.quant.histogram import NUM_BINS, Histogram, dense_rows
from trtq.quant.statistics import Magnitudes, Nothing, Seen, Statistic
from trtq.workers import Workers

EMA_MOMENTUM = 0.99
INTERVAL_BITS = 8  # with fewer, the interval of codes is chosen, too
Floats = npt.NDArray[np.float64]


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
    """Return the ``amax`` with the smallest mean squared quantization error, 0 for zeros alone.

    Args:
        hist: counts of magnitudes.
        qmax: highest code.
        candidates: how many fractions of the largest value are tried, evenly spaced.
        lowest: the smallest of them.
    """
    if hist.amax == 0.0:
        return 0.0
    tries = hist.amax * np.linspace(lowest, 1.0, candidates)
    return float(tries[int(np.argmin(clip_errors(hist, tries, qmax)))])


def best_interval(positive: Histogram, negative: Histogram, bits: int) -> tuple[float, int]:
    """Return (amax, lowest code) of the ``bits``-bit codes with the least mean squared error.

    The tensor has values on both sides of 0.

    Below 8 bits codes are in an INT8 container, so any run of 2^bits codes around 0 is exact at run
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
    """Return KL(P || Q) for a clipping after bin ``end``, infinity where Q is empty.

    Args:
        counts: float64 [bins], the first 0.
        end: bins that remain.
        levels: groups that they are merged into.
    """
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


class Asked(NamedTuple):
    """Purpose of a range.

    Attributes:
        amax: the largest magnitude that was seen.
        bits: width of the quantized values.
        lowest: the lowest code, None for two's complement.
        percentile: for the calibrator of that name, percent.
    """

    amax: float
    bits: int
    lowest: int | None
    percentile: float

    @property
    def qmax(self) -> int:
        """The highest code."""
        return Format(bits=self.bits, lowest=self.lowest).qmax


class Chosen(NamedTuple):
    """A range that a calibrator chose.

    Attributes:
        amax: the magnitude that the highest code stands for, finite, 0 or more.
        lowest: the lowest code, None for two's complement.
    """

    amax: float
    lowest: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrator:
    """How activations get their range.

    Attributes:
        gather: returns what is gathered of one activation, a :class:`Statistic`; its argument is
            True where a quantizer of that activation has fewer than 8 bits.
        choose: takes that statistic and an :class:`Asked`, and returns a :class:`Chosen`.
    """

    gather: Callable[[bool], Statistic]
    choose: Callable[[Any, Asked], Chosen]


def magnitudes(choose: Callable[[Histogram, Asked], float]) -> Calibrator:
    """Return a calibrator that reads the histogram of all magnitudes.

    Args:
        choose: returns ``amax`` from the histogram and what is asked.
    """
    return Calibrator(
        gather=lambda _: Magnitudes(),
        choose=lambda seen, request: Chosen(choose(seen.hist, request), request.lowest),
    )


class MovingAverage:
    """Moving average of each sample's largest magnitude, a_t = 0.99 a_(t-1) + 0.01 m_t.

    The start has no weight of its own: the average is divided by 1 - 0.99^t (bias correction of
    Adam, Kingma 2014, section 3).

    Attributes:
        count: samples, t.
        average: float64 [], before the correction; None before the first sample.
    """

    def __init__(self) -> None:
        self.count = 0
        self.average: torch.Tensor | None = None

    def add(self, seen: Seen) -> None:
        """Count each sample, so that the result does not depend on the batch size."""
        low, high = torch.aminmax(dense_rows(seen.values), dim=1)
        average = self.average
        for value in torch.maximum(low.abs(), high.abs()).double().unbind():
            before = torch.zeros_like(value) if average is None else average
            average = EMA_MOMENTUM * before + (1.0 - EMA_MOMENTUM) * value
            self.count += 1
        self.average = average

    def merge_(self, workers: Workers) -> None:
        """Join the averages: each fades by the samples that come after its own."""
        assert self.average is not None
        counts = torch.zeros(workers.world, dtype=torch.int64, device=self.average.device)
        counts[workers.rank] = self.count
        every = workers.sum_(counts).tolist()
        self.average = workers.sum_(self.average * EMA_MOMENTUM ** sum(every[workers.rank + 1 :]))
        self.count = sum(every)

    @property
    def amax(self) -> float | None:
        """The average without the bias of its start, None before the first sample."""
        if self.average is None:
            return None
        return float(self.average) / (1.0 - EMA_MOMENTUM**self.count)


class Sides:
    """All magnitudes, and for few bits those above and below 0 apart.

    Args:
        narrow: a quantizer of the activation has fewer than 8 bits.

    Attributes:
        hist: of all magnitudes.
        positive, negative: of the values on one side of 0, the others counted as 0; empty unless
            ``narrow``.
    """

    def __init__(self, narrow: bool) -> None:
        self.narrow = narrow
        self.hist, self.positive, self.negative = Histogram(), Histogram(), Histogram()

    def add(self, seen: Seen) -> None:
        """Count a batch; the other side's values count as 0."""
        x = seen.counted
        self.hist.add(x, seen.amax, seen.scratch)
        if self.narrow:
            self.positive.add(x.clamp_min(0.0), seen.high.clamp_min(0.0), seen.scratch)
            self.negative.add(x.neg().clamp_min_(0.0), (-seen.low).clamp_min(0.0), seen.scratch)

    def merge_(self, workers: Workers) -> None:
        """Add the counts of all processes."""
        for hist in (self.hist, *((self.positive, self.negative) if self.narrow else ())):
            hist.merge_(workers)


def _least_error(seen: Sides, request: Asked) -> Chosen:
    if request.bits < INTERVAL_BITS:
        return Chosen(*best_interval(seen.positive, seen.negative, request.bits))
    return Chosen(mse_amax(seen.hist, qmax=request.qmax), request.lowest)


def _average(seen: MovingAverage, request: Asked) -> Chosen:
    return Chosen(request.amax if seen.amax is None else seen.amax, request.lowest)


CALIBRATORS = {
    "max": Calibrator(gather=lambda _: Nothing(), choose=lambda _, a: Chosen(a.amax, a.lowest)),
    "percentile": magnitudes(lambda hist, request: percentile_amax(hist, request.percentile)),
    "entropy": magnitudes(lambda hist, request: entropy_amax(hist, levels=request.qmax + 1)),
    "mse": Calibrator(gather=Sides, choose=_least_error),
    "ema": Calibrator(gather=lambda _: MovingAverage(), choose=_average),
}


AUTO = "auto"  # the best of several, which trtq quantize finds
GATHERED_AS = "mse"  # whose statistic every candidate of auto chooses from
CANDIDATES = ("mse", "max", "entropy", "percentile")


def find_calibrator(name: str) -> Calibrator:
    """Return the calibrator of a name.

    Args:
        name: one of ``CALIBRATORS``, or an extension (``module:name`` or an entry point): a
            :class:`Calibrator`, or a function of a histogram and the highest code that returns
            ``amax``.

    Raises:
        UsageError: it is an extension that cannot be loaded, or it is no calibrator.
    """
    if name in CALIBRATORS:
        return CALIBRATORS[name]
    loaded = extensions.load("calibrators", name)
    if not isinstance(loaded, Calibrator) and not callable(loaded):
        raise UsageError(
            f"Cannot use the calibrator {name!r}",
            f"it is of type {type(loaded).__name__}, expected a function or a Calibrator",
        )
    own = loaded
    if not isinstance(loaded, Calibrator):
        own = magnitudes(lambda hist, request: loaded(hist, request.qmax))
    return Calibrator(
        gather=lambda narrow: _Outside(name, own.gather, narrow),
        choose=partial(_checked, name, own.choose),
    )


def require_merge(name: str, workers: Workers) -> None:
    """Refuse a calibrator whose statistics several processes cannot merge.

    Args:
        name: of the calibrator.
        workers: the processes; one alone may use any calibrator.

    Raises:
        UsageError: it is one from outside trtq without ``merge_``.
    """
    statistic = find_calibrator(name).gather(False)
    own = statistic.own if isinstance(statistic, _Outside) else statistic
    if workers.world > 1 and not hasattr(own, "merge_"):
        raise UsageError(
            f"The calibrator {name} cannot be used by {workers.world} processes",
            f"its statistic {type(own).__name__} has no method merge_",
            "Run trtq quantize without torchrun, or give the statistic merge_(workers)",
        )


class _Outside:
    """A statistic from outside trtq, whose exceptions are errors that name it."""

    def __init__(self, name: str, gather: Callable[[bool], Statistic], narrow: bool) -> None:
        self.name = name
        with _named(name):
            self.own = gather(narrow)

    def add(self, seen: Seen) -> None:
        """Count a batch."""
        with _named(self.name):
            self.own.add(seen)

    def merge_(self, workers: Workers) -> None:
        """Take over what all processes counted."""
        with _named(self.name):
            self.own.merge_(workers)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which calibrator raised.

    Raises:
        CalibrationError: in place of any exception.
    """
    try:
        yield
    except Exception as exc:
        raise CalibrationError(f"The calibrator {name} raised {said_by(exc)}") from exc


def _checked(
    name: str, choose: Callable[[Any, Asked], Chosen], seen: _Outside, request: Asked
) -> Chosen:
    """Return what a calibrator from outside trtq chooses.

    Raises:
        CalibrationError: it raised, or chose no range.
    """
    with _named(name):
        chosen = Chosen(*choose(seen.own, request))
        amax = float(chosen.amax)
    if not 0.0 <= amax < float("inf"):
        raise CalibrationError(
            f"The calibrator {name} chose no range",
            f"it returned {amax}, expected a finite number from 0 on",
        )
    return Chosen(amax, chosen.lowest)


def calibrator_key(name: str, percentile: float) -> str:
    """Return what identifies a calibrator with its settings, for caches and records.

    Args:
        name: of the calibrator, or ``auto``.
        percentile: percent; part of the key of ``percentile`` and ``auto`` alone.

    Raises:
        UsageError: it is an extension that cannot be loaded, or it is no calibrator.
    """
    if name == "percentile":
        return f"percentile {percentile!r}"
    if name == AUTO:
        return f"{AUTO} of {' '.join(CANDIDATES)} {percentile!r}"
    find_calibrator(name)
    return name if name in CALIBRATORS else extensions.identity("calibrators", name)
