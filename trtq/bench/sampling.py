"""Time calls: warm up until stable, then run blocks until the median is known well enough.

The timed loop does nothing else.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from trtq.bench.statistics import Values, quantile
from trtq.errors import first_line

WARMUP_CALLS = 50
WARMUP_S = 1.0
WARMUP_LIMIT_S = 30.0
WARMUP_WINDOW = 20
STABLE_WITHIN = 0.01
BLOCK_S = 0.5
MIN_BLOCKS = 5
NARROW = 0.005
MOST_IN_BLOCK = 100_000
Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Warmup:
    """The warm-up before the first sample.

    Attributes:
        calls: how many.
        stable: whether the medians of the last two windows agreed within 1 %.
        call_s: median of the last window, seconds.
        failed: what a call raised; nothing is measured then.
    """

    calls: int
    stable: bool
    call_s: float
    failed: str = ""


@dataclass(slots=True)
class Samples:
    """Times of single calls, nanoseconds, in the order they were taken.

    Attributes:
        ns: int64.
        blocks: the index at which each block starts.
        stopped: which rule ended the run.
        failed: what a call raised; what was measured before it is kept.
    """

    ns: np.ndarray
    blocks: list[int] = field(default_factory=list)
    stopped: str = ""
    failed: str = ""

    @property
    def ms(self) -> Values:
        """Milliseconds, float64."""
        return self.ns / 1e6

    def block_medians(self) -> list[float]:
        """Return the median of each block, milliseconds."""
        return [
            float(np.median(part)) / 1e6 for part in np.split(self.ns, self.blocks[1:]) if len(part)
        ]


@dataclass(frozen=True, slots=True)
class StopRule:
    """When enough was measured.

    Attributes:
        seconds: shortest measured time.
        samples: fewest calls.
        limit_s: longest measured time; a figure not reached by then is reported.
        narrow: required relative half width of the median's interval.
    """

    seconds: float = 3.0
    samples: int = 500
    limit_s: float = 60.0
    narrow: float = NARROW


@contextmanager
def quiet_interpreter() -> Iterator[None]:
    """Keep the garbage collector out of a timed loop.

    Objects that are old already are left alone: a whole collection takes 0.3 s where torch is
        loaded.
    """
    was = gc.isenabled()
    gc.collect(1)
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def time_block(
    call: Callable[[], object], times: np.ndarray, clock: Clock = time.perf_counter_ns
) -> None:
    """Fill an array with the times of single calls; exceptions propagate.

    The loop costs about 0.1 us a call; ``loop_overhead`` measures it.

    Args:
        call: what is timed.
        times: int64 [N], filled with nanoseconds; N calls are made. After an exception the rest
            keeps its values.
        clock: nanoseconds.
    """
    slots = times.data  # a third of the time of writing into the array
    for i in range(len(slots)):
        start = clock()
        call()
        slots[i] = clock() - start


def loop_overhead(calls: int = 100_000) -> float:
    """Return the overhead of the loop for a call that does nothing, microseconds."""
    times = np.zeros(calls, dtype=np.int64)
    start = time.perf_counter_ns()
    with quiet_interpreter():
        time_block(_nothing, times)
    whole = time.perf_counter_ns() - start
    start = time.perf_counter_ns()
    with quiet_interpreter():
        for _ in range(calls):
            _nothing()
    return (whole - (time.perf_counter_ns() - start)) / calls / 1e3


def said(exc: BaseException) -> str:
    """Return an exception in one line."""
    return f"{type(exc).__name__}: {first_line(str(exc)) or 'interrupted'}"


def _nothing() -> None:
    return None


def warm_up(
    call: Callable[[], object],
    *,
    calls: int = WARMUP_CALLS,
    seconds: float = WARMUP_S,
    limit_s: float = WARMUP_LIMIT_S,
    clock: Clock = time.perf_counter_ns,
) -> Warmup:
    """Call until the times are stable.

    The warm-up ends when enough calls and time have passed and the medians of two windows of 20
    calls agree within 1 %, or after ``limit_s``.

    Args:
        call: one request.
        calls: fewest.
        seconds: shortest duration.
        limit_s: longest duration.
        clock: nanoseconds.

    Returns:
        how it went; an exception or Ctrl-C is in ``failed`` and not raised.
    """
    times: list[int] = []
    began = clock()
    while True:
        start = clock()
        try:
            call()
        except (Exception, KeyboardInterrupt) as exc:
            return Warmup(calls=len(times), stable=False, call_s=0.0, failed=said(exc))
        now = clock()
        times.append(now - start)
        passed_s = (now - began) / 1e9
        over = passed_s >= limit_s
        if len(times) < 2 * WARMUP_WINDOW and not over:
            continue
        late, stable = _settled(times)
        ready = len(times) >= calls and passed_s >= seconds and stable
        if ready or over:
            return Warmup(calls=len(times), stable=ready, call_s=late / 1e9)


def _settled(times: Sequence[int]) -> tuple[float, bool]:
    """Return the median of the last window, ns, and whether that before it is the same."""
    late = float(np.median(times[-WARMUP_WINDOW:]))
    before = float(np.median(times[-2 * WARMUP_WINDOW : -WARMUP_WINDOW] or times))
    return late, abs(late - before) <= STABLE_WITHIN * before


def sample(
    call: Callable[[], object],
    expected_s: float,
    rule: StopRule,
    *,
    block_s: float = BLOCK_S,
    clock: Clock = time.perf_counter_ns,
    between: Callable[[], object] = lambda: None,
) -> Samples:
    """Time blocks of calls until ``rule`` is met.

    An exception or Ctrl-C ends the run; what was measured until then is kept.

    Args:
        call: what is timed.
        expected_s: a call's time, from the warm-up: it decides how many calls make a block.
        rule: when to stop.
        block_s: length of a block, seconds; nothing but calls happens inside.
        clock: nanoseconds.
        between: called after each block, outside of all times.

    Returns:
        all times, empty where the first call failed.
    """
    per_block = min(MOST_IN_BLOCK, max(1, round(block_s / max(expected_s, 1e-7))))
    capacity = max(rule.samples, per_block)
    times = np.zeros(capacity, dtype=np.int64)
    filled = 0
    blocks: list[int] = []
    began = clock()
    stopped = ""
    failed = ""
    with quiet_interpreter():
        while not stopped:
            if filled + per_block > len(times):
                times = np.concatenate(
                    [times, np.zeros(max(len(times), per_block), dtype=np.int64)]
                )
            block = times[filled : filled + per_block]
            block[:] = -1
            try:
                time_block(call, block, clock)
            except (Exception, KeyboardInterrupt) as exc:
                failed = said(exc)
            count = int((block >= 0).sum())
            if count:
                blocks.append(filled)
                filled += count
                between()
            stopped = (
                "a call failed"
                if failed
                else _ended(times[:filled], len(blocks), (clock() - began) / 1e9, rule)
            )
    return Samples(ns=times[:filled].copy(), blocks=blocks, stopped=stopped, failed=failed)


def _ended(ns: np.ndarray, blocks: int, seconds: float, rule: StopRule) -> str:
    """Return which rule ends the run here, "" for none."""
    if seconds >= rule.limit_s:
        return f"{rule.limit_s:g} s had passed"
    if seconds < rule.seconds or len(ns) < rule.samples or blocks < MIN_BLOCKS:
        return ""
    width = half_width(ns.astype(np.float64))
    return (
        f"the median is known within {rule.narrow:.1%}"
        if width is not None and width <= rule.narrow
        else ""
    )


def half_width(samples: Values) -> float | None:
    """Return the relative half width of the median's 95 % interval, None with too few samples.

    A median of 10 ms with an interval of 9.9 to 10.3 ms gives 0.02.
    """
    median = quantile(samples, 0.5)
    if median.value is None or median.low is None or median.high is None or median.value <= 0.0:
        return None
    return (median.high - median.low) / 2.0 / median.value
