"""What samples say.

The functions are compared with scipy and numpy, with tables from the facts, and with simulated
latencies whose truth is known.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.signal import lfilter

from trtq.bench.statistics import (
    drift,
    early_stopping,
    effective_samples,
    inefficiency,
    outliers,
    quantile,
    ranks,
    samples_needed,
)

TABLE = {  # facts: order-statistic ranks, 95 % two-sided
    (20, 0.5): (6, 15),
    (50, 0.5): (18, 33),
    (50, 0.9): (41, 50),
    (100, 0.5): (40, 61),
    (100, 0.9): (84, 96),
    (100, 0.95): (90, 100),
    (200, 0.9): (171, 189),
    (500, 0.99): (490, 500),
    (1000, 0.5): (469, 532),
    (1000, 0.95): (936, 964),
    (2000, 0.99): (1971, 1989),
    (5000, 0.999): (4990, 5000),
    (10000, 0.5): (4902, 5099),
    (10000, 0.999): (9983, 9997),
    (20, 0.9): None,
    (200, 0.99): None,
}


@pytest.mark.parametrize(("n", "q"), TABLE)
def test_ranks_are_those_of_the_table(n, q):
    assert ranks(n, q) == TABLE[n, q]


@given(st.integers(1, 4000), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=60)
def test_ranks_hold_the_quantile_with_95_percent_by_the_binomial(n, q):
    found = ranks(n, q)
    if found is None:
        assert n < samples_needed(q) or stats.binom.cdf(n - 1, n, q) < 0.975
        return
    low, high = found
    covered = stats.binom.cdf(high - 1, n, q) - stats.binom.cdf(low - 1, n, q)
    assert covered >= 0.95 - 1e-9
    # One rank less on either side would not do.
    assert stats.binom.cdf(low, n, q) > 0.025
    assert high == 1 or stats.binom.cdf(high - 2, n, q) < 0.975


def test_smallest_numbers_for_an_interval():
    for q in (0.5, 0.9, 0.95, 0.99, 0.999):
        n = samples_needed(q)
        assert ranks(n, q) is not None
        assert ranks(n - 1, q) is None


def latencies(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Milliseconds with a true quantile that a long run of the same gives."""
    if kind == "skewed":
        return rng.lognormal(0.0, 0.5, n)
    if kind == "bimodal":
        return np.where(rng.random(n) < 0.3, rng.normal(2.0, 0.1, n), rng.normal(1.0, 0.05, n))
    return np.exp(
        0.3 * lfilter([1.0], [1.0, -0.8], rng.normal(0.0, 1.0, n + 200))[200:]
    )  # autocorrelated: AR(1), phi 0.8


@pytest.mark.parametrize("kind", ["skewed", "bimodal", "autocorrelated"])
@pytest.mark.parametrize("q", [0.5, 0.9])
def test_intervals_hold_the_truth_in_93_to_97_percent_of_runs(kind, q):
    rng = np.random.default_rng(3)
    true = float(np.quantile(latencies(kind, rng, 2_000_000), q))
    hits = []
    for _ in range(800):
        found = quantile(latencies(kind, rng, 2500), q)
        assert found.low is not None
        assert found.high is not None
        hits.append(found.low <= true <= found.high)
    assert 0.93 <= np.mean(hits) <= 0.97


def test_a_plain_interval_fails_where_samples_depend_on_each_other():
    """What the effective number is for: without it the same runs are covered far too rarely."""
    rng = np.random.default_rng(4)
    true = float(np.median(latencies("autocorrelated", rng, 1_000_000)))
    low, high = ranks(2500, 0.5)
    runs = [np.sort(latencies("autocorrelated", rng, 2500)) for _ in range(300)]
    assert np.mean([r[low - 1] <= true <= r[high - 1] for r in runs]) < 0.85


def test_a_tail_is_left_out_rather_than_guessed():
    found = quantile(np.random.default_rng(0).random(120), 0.99)
    assert (found.value, found.low, found.high, found.needs) == (None, None, None, 368)


def test_inefficiency_of_an_autoregression_is_the_known_one():
    rng = np.random.default_rng(0)
    for phi, known in ((0.0, 1.0), (0.5, 3.0), (0.9, 19.0)):
        x = lfilter([1.0], [1.0, -phi], rng.normal(size=200_000))
        assert inefficiency(x) == pytest.approx(known, rel=0.12)


def test_effective_samples_of_alternating_runs():
    assert effective_samples(np.repeat(np.random.default_rng(0).random(100), 50)) < 200
    assert effective_samples(np.random.default_rng(0).random(5000)) > 4000


def test_outliers_by_hand():
    values = np.asarray([9.0, 10.0, 11.0] * 33 + [100.0])
    found = outliers(values)  # median 10, MAD 1: above 17.4
    assert found.count == 1
    assert found.share == pytest.approx(100.0 / values.sum())
    assert outliers(np.ones(10)).count == 0


def test_drift_is_scipys_and_needs_size_and_significance():
    rising = [1.0 + 0.005 * i for i in range(20)]
    found = drift(rising)
    assert found.found
    assert found.change == pytest.approx(0.005 * 19 / np.median(rising))
    noisy = [1.0, 1.001, 0.999, 1.0, 1.0005, 0.9995]
    assert not drift(noisy).found
    assert not drift(
        [1.0 + 0.0001 * i for i in range(20)]
    ).found  # significant, and too small to matter
    assert drift([1.0]).p == 1.0


def test_early_stopping_counts_are_mlperfs():
    table = {
        0.9: (64, 81, 127, 197),
        0.95: (130, 165, 259, 398),
        0.97: (219, 277, 433, 667),
        0.99: (662, 838, 1307, 2010),
    }  # facts
    for q, counts in table.items():
        for t, n in zip((1, 2, 5, 10), counts, strict=True):
            assert early_stopping(np.arange(1.0, n + 1.0), q) == n - t + 1
            before = early_stopping(np.arange(1.0, n), q)
            assert before is None if t == 1 else before == n - 1 - (t - 1) + 1
