"""Statistics of samples: quantiles with intervals, dependence, outliers and drift.

No distribution is assumed.

Latency samples are skewed, have several modes and depend on their neighbours. Intervals are
therefore between order statistics, and dependence reduces the effective number of samples (Hoefler
and Belli, SC'15).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
ALPHA = 0.05
MAD_TO_SIGMA = 1.4826
OUTLIER_SIGMAS = 5.0
EARLY_CONFIDENCE = 0.99  # MLPerf's early stopping
LONGEST, MOST_PARTS = 1 << 17, 8


class Quantile(msgspec.Struct, frozen=True, kw_only=True):
    """A quantile of the samples with its 95 % interval.

    Values are None when there are too few samples for the interval.

    The median always has a value: half of the samples are on either side of it, regardless of what
    is known about the next run.

    Attributes:
        q: 0 to 1.
        value, low, high: in the unit of the samples.
        needs: effective samples from which the interval exists.
    """

    q: float
    value: float | None
    low: float | None
    high: float | None
    needs: int


class Outliers(msgspec.Struct, frozen=True, kw_only=True):
    """Samples far above the median; they remain in every figure.

    Attributes:
        count: samples above median + 5 x 1.4826 x MAD (the median distance from the median).
        share: their part of the sum of all samples, 0 to 1.
    """

    count: int
    share: float


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """Trend of the block medians.

    Attributes:
        change: the Theil-Sen slope over the whole run as a share of the median: 0.02 is 2 % slower
            at the end.
        p: of the Mann-Kendall test against no trend.
    """

    change: float
    p: float

    @property
    def found(self) -> bool:
        """Whether it exceeds 1 % with p below 0.05."""
        return abs(self.change) > 0.01 and self.p < ALPHA


def samples_needed(q: float, *, alpha: float = ALPHA) -> int:
    """Return the smallest n for which a two-sided interval of quantile q exists.

    Both tails hold at most alpha / 2: n is the smallest with max(q, 1 - q)^n <= alpha / 2.

    Args:
        q: between 0 and 1, both excluded.
        alpha: 1 less the confidence.

    >>> [samples_needed(q) for q in (0.5, 0.9, 0.95, 0.99, 0.999)]
    [6, 36, 72, 368, 3688]
    """
    return math.ceil(math.log(alpha / 2) / math.log(max(q, 1.0 - q)))


def ranks(n: int, q: float, *, alpha: float = ALPHA) -> tuple[int, int] | None:
    """Return the 1-based ranks (L, U) of the interval of quantile q, None with too few samples.

    L is the largest with P(X <= L - 1) <= alpha / 2, U the smallest with P(X <= U - 1) >= 1 - alpha
    / 2, for X ~ Binomial(n, q).

    Args:
        n: number of independent samples.
        q: between 0 and 1, both excluded.
        alpha: 1 less the confidence.

    >>> ranks(100, 0.5), ranks(1000, 0.99), ranks(360, 0.99)
    ((40, 61), (983, 997), None)
    """
    from scipy.stats import binom

    if n < samples_needed(q, alpha=alpha):
        return None
    low = int(binom.ppf(alpha / 2, n, q))
    low = low + 1 if binom.cdf(low, n, q) <= alpha / 2 else low
    high = int(binom.ppf(1 - alpha / 2, n, q)) + 1
    return (low, high) if low >= 1 and high <= n else None


def inefficiency(indicator: Values) -> float:
    """Return how many samples carry the information of one independent sample, at least 1.

    It is 1 + 2 x the sum of autocorrelations (Geyer 1992).

    The sum ends at the first pair of lags whose correlations do not add up to a positive value
    (initial positive sequence).

    Args:
        indicator: [N], in the order of time: 1 for samples below a quantile, else 0. Long series
            are judged by up to 8 stretches of 131,072 samples.
    """
    n = len(indicator)
    if n < 4 or float(np.ptp(indicator)) == 0.0:
        return 1.0
    length = min(
        n, LONGEST
    )  # a dependence that reaches further would show within it; memory remains small
    starts = np.unique(np.linspace(0, n - length, MOST_PARTS if n > length else 1).astype(int))
    mean, total = float(indicator.mean()), np.zeros(length)
    for start in starts:
        centred = indicator[start : start + length] - mean
        spectrum = np.fft.rfft(centred, 1 << (2 * length - 1).bit_length())
        total += np.fft.irfft(spectrum.real**2 + spectrum.imag**2)[:length]
    if total[0] <= 0.0:
        return 1.0
    correlation, n = total / total[0], length
    pairs = correlation[: n - n % 2].reshape(-1, 2).sum(axis=1)
    ends = np.flatnonzero(pairs <= 0.0)
    kept = pairs[: ends[0]] if len(ends) else pairs[: max(1, n // 20)]
    kept = np.minimum.accumulate(kept)  # initial monotone sequence: late noise does not add up
    return max(1.0, float(2.0 * kept.sum() - 1.0))


def quantile(samples: Values, q: float, *, alpha: float = ALPHA) -> Quantile:
    """Return quantile q with the interval between order statistics that holds it with 1 - alpha.

    The samples may depend on their neighbours: the inefficiency multiplies the variance of the
    share of samples below the quantile and divides the number of samples. Ranks are those of the
    effective number, scaled to all samples.

    Args:
        samples: [N], in the order of time.
        q: between 0 and 1, both excluded.
        alpha: 1 less the confidence.

    Returns:
        without an interval where the effective sample size is below ``needs``; the value is then
        None, too, except for the median of at least one sample.
    """
    n, needs = len(samples), samples_needed(q, alpha=alpha)
    ordered, effective = np.sort(samples), n
    if n >= needs:
        spread = inefficiency(_below(samples, ordered, q))
        # A tail has too few samples to see its own dependence: its effective sample size
        # by the median's dependence must reach its number, too.
        enough = n / inefficiency(_below(samples, ordered, 0.5)) >= needs
        effective = max(1, round(n / spread)) if enough else 0
    positions = ranks(effective, q, alpha=alpha)
    if positions is None:
        middle = float(np.median(ordered)) if q == 0.5 and n else None
        return Quantile(q=q, value=middle, low=None, high=None, needs=needs)
    low, high = positions
    # Ranks among n: the same distance in standard deviations from q n, rounded outwards; wider
    # while the dependence itself is uncertain.
    stretch = n / effective * _uncertainty(effective, n)
    first = max(1, math.floor(q * n - (q * effective - low) * stretch))
    last = min(n, math.ceil(q * n + (high - q * effective) * stretch))
    return Quantile(
        q=q,
        value=float(np.quantile(ordered, q)),
        low=float(ordered[first - 1]),
        high=float(ordered[last - 1]),
        needs=needs,
    )


def _below(samples: Values, ordered: Values, q: float) -> Values:
    """Return 1 for samples up to the sample quantile q and 0 for others, float64 [N]."""
    below: Values = (
        samples <= ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)]
    ).astype(np.float64)
    return below


def _uncertainty(effective: int, n: int) -> float:
    """Return the widening factor of an interval when the effective number is an estimate.

    The factor is the ratio of the quantile of Student's t to that of the normal distribution.
    """
    from scipy.stats import norm, t

    if effective >= n:
        return 1.0
    return float(t.ppf(1 - ALPHA / 2, max(2.0, effective / 4.0)) / norm.ppf(1 - ALPHA / 2))


def effective_samples(samples: Values) -> int:
    """Return how many independent samples tell as much about the median, at least 1.

    Args:
        samples: [N], N > 0, in the order of time.
    """
    return max(1, round(len(samples) / inefficiency(_below(samples, np.sort(samples), 0.5))))


def outliers(samples: Values) -> Outliers:
    """Return how many samples are far above the rest."""
    middle = float(np.median(samples))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(samples - middle)))
    far = samples[samples > middle + OUTLIER_SIGMAS * spread] if spread > 0.0 else samples[:0]
    return Outliers(
        count=len(far), share=float(far.sum() / samples.sum()) if samples.sum() > 0.0 else 0.0
    )


def drift(medians: Sequence[float]) -> Drift:
    """Return the trend of block medians, in the order they were taken.

    Fewer than four medians, or equal ones, have no trend: change 0, p 1.
    """
    from scipy.stats import kendalltau, theilslopes

    values = np.asarray(medians, dtype=np.float64)
    if len(values) < 4 or float(np.ptp(values)) == 0.0:
        return Drift(change=0.0, p=1.0)
    slope = float(theilslopes(values)[0])
    p = float(kendalltau(np.arange(len(values)), values)[1])
    return Drift(change=slope * (len(values) - 1) / float(np.median(values)), p=p)


def early_stopping(
    samples: Values, q: float, *, confidence: float = EARLY_CONFIDENCE
) -> float | None:
    """Return MLPerf's early-stopping estimate of a latency quantile.

    Return None with too few queries for it.

    With the largest number t of slow queries for which the run would still prove the quantile
    (tolerance 0), the t - 1 slowest are set aside and the slowest of the rest is the estimate
    (MLPerf Inference rules, early stopping).

    Args:
        samples: latencies [N].
        q: between 0 and 1, both excluded.
        confidence: of the proof.

    >>> early_stopping(np.arange(1.0, 64.0), 0.9), early_stopping(np.arange(1.0, 65.0), 0.9)
    (None, 64.0)
    >>> early_stopping(np.arange(1.0, 82.0), 0.9)
    80.0
    """
    from scipy.stats import binom

    n = len(samples)
    # A run with t slow queries proves the quantile when so few would be unlikely if their share
    # were 1 - q.
    slow = np.arange(1, n + 1)
    proven = slow[binom.cdf(slow, n, 1.0 - q) <= 1.0 - confidence]
    if not len(proven):
        return None
    return float(np.sort(samples)[n - int(proven[-1])])
