"""Compare two models that take turns in short blocks in random order.

Drift affects both models, since turns are short. Two loads of the same file also differ: their
memory is elsewhere, and on a CPU that alone makes a difference of some percent. The models are
therefore loaded repeatedly: in each group the first model is loaded twice and the second once, and
the ratio's interval comes from the spread between groups. The two loads of the first model show the
noise floor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trtq.bench.sampling import Clock, quiet_interpreter, said, time_block, warm_up
from trtq.bench.statistics import Values
from trtq.errors import BenchError

Outcome = Literal["faster", "slower", "no measurable difference"]
DISCARD = 0.10
TRIM = 0.2
MARGIN = 0.01
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Turns:
    """Result of an interleaved comparison.

    Attributes:
        first_ms, second_ms: medians over blocks.
        ratio, low, high: time of the second over time of the first, 95 %.
        noise: how far from 1 the interval of the first against itself reaches.
        outcome: of the second: a difference when the interval is outside the margin and the ratio
            outside the noise.
        groups: loads of each (twice as many of the first).
        stopped: which rule ended it.
    """

    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float
    noise: float
    outcome: Outcome
    groups: int
    stopped: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnSettings:
    """How models take turns.

    Attributes:
        block_s: length of a turn, seconds; its first 10 % are set aside, since a turn begins with
            cold caches.
        rounds: turns of each load.
        min_groups: fewest loads of the second model.
        max_groups: most.
        narrow: half width of the ratio's interval that ends the run.
        margin: differences below this fraction count as equal.
        seed: of the order.
    """

    block_s: float = 0.05
    rounds: int = 8
    min_groups: int = 8
    max_groups: int = 32
    narrow: float = 0.004
    margin: float = MARGIN
    seed: int = 0


DEFAULT_TURNS = TurnSettings()


def take_turns(
    first: Callable[[], Call],
    second: Callable[[], Call],
    settings: TurnSettings = DEFAULT_TURNS,
    *,
    clock: Clock = time.perf_counter_ns,
    between: Callable[[], object] = lambda: None,
) -> Turns:
    """Load and time until the ratio is known well enough.

    Args:
        first: loads the first model and returns one request.
        second: the same of the other one.
        settings: lengths and numbers of turns.
        clock: nanoseconds.
        between: called after each group, outside of all times.

    Raises:
        BenchError: a request fails.
    """
    rng = np.random.default_rng(settings.seed)
    openers = (first, first, second)
    groups: list[list[float]] = []
    blocks: list[list[float]] = []
    stopped = f"{settings.max_groups} loads of each"
    while len(groups) < settings.max_groups:
        calls: dict[int, Call] = {int(i): openers[i]() for i in rng.permutation(3)}
        rows = _group([calls[i] for i in range(3)], rng, settings, clock)
        logs = np.log(rows)
        groups.append(
            [_middle(logs[:, 2] - logs[:, :2].mean(axis=1)), _middle(logs[:, 1] - logs[:, 0])]
        )
        blocks += rows.tolist()
        between()
        if len(groups) >= settings.min_groups:
            _, low, high, _, _ = judge(np.asarray(groups), margin=settings.margin)
            if (high - low) / 2.0 <= settings.narrow:
                stopped = f"the ratio is known within {settings.narrow:.1%}"
                break
    ratio, low, high, noise, outcome = judge(np.asarray(groups), margin=settings.margin)
    table = np.asarray(blocks)
    return Turns(
        first_ms=float(np.median(table[:, :2])),
        second_ms=float(np.median(table[:, 2])),
        ratio=ratio,
        low=low,
        high=high,
        noise=noise,
        outcome=outcome,
        groups=len(groups),
        stopped=stopped,
    )


def _group(
    calls: list[Call], rng: np.random.Generator, settings: TurnSettings, clock: Clock
) -> Values:
    """Return the medians of blocks, ms [rounds, 3], of three loads taking turns.

    Args:
        calls: first model, second load of the first model, second model: the columns of the result.
        rng: draws the order in each round.
        settings: length and number of turns.
        clock: nanoseconds.

    Raises:
        BenchError: a request fails.
    """
    block_s = settings.block_s
    warmed = [
        warm_up(c, calls=10, seconds=block_s, limit_s=5 * block_s, clock=clock) for c in calls
    ]
    failed = next((w.failed for w in warmed if w.failed), "")
    if failed:
        raise BenchError("A request failed in the warm-up", failed)
    sizes = [max(5, round(block_s / max(w.call_s, 1e-7))) for w in warmed]
    rows = np.zeros((settings.rounds, 3))
    with quiet_interpreter():
        for row in rows:
            for i in rng.permutation(3):
                times = np.zeros(sizes[i], dtype=np.int64)
                try:
                    time_block(calls[i], times, clock)
                except Exception as exc:
                    raise BenchError("A request failed while files took turns", said(exc)) from exc
                row[i] = float(np.median(times[max(1, int(DISCARD * sizes[i])) :])) / 1e6
    return rows


def judge(groups: Values, *, margin: float = MARGIN) -> tuple[float, float, float, float, Outcome]:
    """Return ratio, its interval, the noise and the outcome.

    Args:
        groups: [N, 2], logarithms: second over first, and the first's second load over its first.
        margin: differences below this fraction count as equal.

    Returns:
        ratio; low and high end of its 95 % interval; noise, the largest distance of the interval of
        the first against itself from 1; the outcome. ``slower`` needs low > 1 + margin and ratio >
        1 + noise, ``faster`` the same of the reciprocals.
    """
    ratio = math.exp(_middle(groups[:, 0]))
    low, high = (math.exp(v) for v in _interval(groups[:, 0]))
    noise = max(abs(math.exp(v) - 1.0) for v in _interval(groups[:, 1]))
    outcome: Outcome = "no measurable difference"
    if low > 1.0 + margin and ratio > 1.0 + noise:
        outcome = "slower"
    elif high < 1.0 / (1.0 + margin) and ratio < 1.0 / (1.0 + noise):
        outcome = "faster"
    return ratio, low, high, noise, outcome


def _middle(values: Values) -> float:
    """Return the mean without the outer fifths, which excludes disturbed groups."""
    from scipy.stats import trim_mean

    return float(trim_mean(values, TRIM))


def _interval(values: Values) -> tuple[float, float]:
    """Return the 95 % interval of the trimmed mean.

    The method is that of Tukey and McLaughlin: Student's t with the winsorized variance.
    """
    from scipy.stats.mstats import trimmed_mean_ci

    low, high = trimmed_mean_ci(values, limits=(TRIM, TRIM), inclusive=(True, True), alpha=0.05)
    return float(low), float(high)
