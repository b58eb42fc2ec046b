"""Two models taking turns: short blocks in random order, so that what drifts hits both, and a second copy of the first to see the noise.

A difference counts when its interval lies outside what the first model shows against a copy of itself, and outside a margin.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trtq.bench.sampling import quiet_interpreter, said, time_block, warm_up
from trtq.bench.statistics import Values, bootstrap
from trtq.errors import BenchError

Outcome = Literal["faster", "slower", "no measurable difference"]
BLOCK_S, DISCARD, TRIM = 0.05, 0.10, 0.3
MIN_ROUNDS, MAX_ROUNDS, NARROW, MARGIN = 20, 400, 0.004, 0.01
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Turns:
    """What taking turns showed.

    Attributes:
        first_ms, second_ms: medians over blocks.
        ratio, low, high: time of the second over time of the first, 95 %.
        same, noise: the first against its copy: ratio, and how far from 1 its interval reaches.
        floor: that, at least the margin.
        outcome: of the second.
        rounds: blocks of each.
        stopped: which rule ended it.
    """

    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float
    same: float
    noise: float
    floor: float
    outcome: Outcome
    rounds: int
    stopped: str


def take_turns(
    first: Call, copy: Call, second: Call, *, block_s: float = BLOCK_S, min_rounds: int = MIN_ROUNDS, max_rounds: int = MAX_ROUNDS,
    narrow: float = NARROW, margin: float = MARGIN, seed: int = 0, clock: Callable[[], int] = time.perf_counter_ns,
    between: Callable[[], object] = lambda: None,
) -> Turns:  # fmt: skip
    """Time blocks of three calls in random order until the ratio is known well enough.

    Args:
        first: one request.
        copy: the same of a second load of the same file.
        second: a request of the other file.
        block_s: length of a block, seconds; its first 10 % are set aside, since a turn begins with cold caches.
        min_rounds: fewest blocks of each.
        max_rounds: most blocks of each.
        narrow: half width of the ratio's interval that ends the run.
        margin: a smaller difference is none.
        seed: of the order and of the bootstrap.
        clock: nanoseconds.
        between: called now and then between blocks, outside of all times.

    Raises:
        BenchError: a request fails.
    """
    calls = (first, copy, second)
    warmed = [warm_up(c, calls=10, seconds=block_s, limit_s=5.0, clock=clock) for c in calls]
    failed = next((w.failed for w in warmed if w.failed), "")
    if failed:
        raise BenchError("A request failed in the warm-up", failed)
    sizes = [max(5, round(block_s / max(w.call_s, 1e-7))) for w in warmed]
    rng = np.random.default_rng(seed)
    rows: list[list[float]] = []
    stopped = f"{max_rounds} blocks of each"
    with quiet_interpreter():
        while len(rows) < max_rounds:
            medians = [0.0, 0.0, 0.0]
            for i in rng.permutation(3):
                times = np.zeros(sizes[i], dtype=np.int64)
                try:
                    time_block(calls[i], times, clock)
                except Exception as exc:
                    raise BenchError(f"A request failed after {len(rows)} turns of each file", said(exc)) from exc
                medians[i] = float(np.median(times[max(1, int(DISCARD * sizes[i])) :])) / 1e6
            rows.append(medians)
            if len(rows) % 8 == 0:
                between()
            if len(rows) >= min_rounds and len(rows) % 10 == 0:
                found = judge(np.asarray(rows), margin=margin, seed=seed)
                if (found[2] - found[1]) / 2.0 <= narrow:
                    stopped = f"the ratio is known within {narrow:.1%}"
                    break
    table = np.asarray(rows)
    ratio, low, high, same, noise, outcome = judge(table, margin=margin, seed=seed)
    return Turns(
        first_ms=float(np.median(table[:, :2])), second_ms=float(np.median(table[:, 2])), ratio=ratio, low=low, high=high, same=same,
        noise=noise, floor=max(margin, noise), outcome=outcome, rounds=len(rows), stopped=stopped,
    )  # fmt: skip


def judge(rows: Values, *, margin: float = MARGIN, seed: int = 0) -> tuple[float, float, float, float, float, Outcome]:
    """Return ratio, its interval, the copy's ratio, the noise and the outcome from block medians [N, 3]: first, copy, second."""
    logs = np.log(rows)
    against = logs[:, 2] - logs[:, :2].mean(axis=1)
    itself = logs[:, 1] - logs[:, 0]
    ratio, same = math.exp(_middle(against)), math.exp(_middle(itself))
    low, high = (math.exp(v) for v in bootstrap(against, _middle, seed=seed))
    noise = max(abs(math.exp(v) - 1.0) for v in bootstrap(itself, _middle, seed=seed))
    floor = max(margin, noise)
    outcome: Outcome = "no measurable difference"
    if low > 1.0 + floor:
        outcome = "slower"
    elif high < 1.0 / (1.0 + floor):
        outcome = "faster"
    return ratio, low, high, same, noise, outcome


def _middle(values: Values, axis: int = -1) -> Any:
    """Return the mean without the outer 30 % on either side: a block that something else ran into does not count."""
    ordered = np.sort(values, axis=axis)
    cut = int(TRIM * ordered.shape[axis])
    return np.take(ordered, range(cut, ordered.shape[axis] - cut), axis=axis).mean(axis=axis)
