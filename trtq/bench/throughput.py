"""Throughput: several requests in flight, and the arrival patterns of MLPerf Inference at durations of our own."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import numpy as np

from trtq.bench.record import Throughput
from trtq.bench.sampling import warm_up
from trtq.bench.statistics import Values, early_stopping, quantile
from trtq.bench.workload import Workload
from trtq.errors import BenchError

Scenario = Literal["closed", "single", "multi", "offline", "server"]
QUANTILES = {"single": 0.9, "multi": 0.99, "server": 0.99}
SAMPLES_PER_QUERY = {"multi": 8}
MLPERF_SECONDS = 600.0
NO_RESULT = "the pattern is MLPerf Inference's; this is no MLPerf result"
TRIALS = 8


def measure_throughput(
    workload: Workload, *, scenario: Scenario = "closed", streams: int = 2, seconds: float = 3.0, bound_ms: float | None = None,
    seed: int = 0,
) -> Throughput:  # fmt: skip
    """Serve requests for ``seconds`` after a warm-up.

    Args:
        workload: the model.
        scenario: ``closed``: as many in flight as streams. ``single``: the next when the last has ended. ``multi``: the same with 8
            images a query. ``offline``: everything at once. ``server``: Poisson arrivals; the highest rate whose 99th percentile meets
            ``bound_ms``.
        streams: requests in flight (``closed``, ``offline``, ``server``).
        seconds: measured, for each rate that ``server`` tries.
        bound_ms: of ``server``.
        seed: of the arrivals.

    Raises:
        BenchError: ``server`` without a bound, or a request fails.
    """
    failed = warm_up(workload.call).failed
    if failed:
        raise BenchError("A request failed in the warm-up", failed)
    if scenario in ("single", "multi"):
        return _one_after_another(workload, scenario, seconds)
    slots = [workload, *(workload.again() for _ in range(streams - 1))]
    for slot in slots[1:]:
        slot.call()
    if scenario == "server":
        if bound_ms is None:
            raise BenchError("The scenario server needs a bound", "it asks for the highest rate that meets one", "Give --latency-bound MS")
        return _server(slots, seconds, bound_ms, seed)
    starts, ends = _flood(slots, seconds)
    span = max(ends) - min(starts)
    images = workload.shape[0] * len(ends)
    note = f"every request waits from the start; {NO_RESULT}" if scenario == "offline" else ""
    return Throughput(
        scenario=scenario, streams=streams, images_per_s=images / span, queries=len(ends), samples_per_query=1, seconds=span, note=note
    )


def _one_after_another(workload: Workload, scenario: Scenario, seconds: float) -> Throughput:
    q, many = QUANTILES[scenario], SAMPLES_PER_QUERY.get(scenario, 1)
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        start = time.perf_counter()
        for _ in range(many):
            workload.call()
        times.append(1e3 * (time.perf_counter() - start))
    span = time.perf_counter() - began
    found = np.asarray(times)
    return Throughput(
        scenario=scenario, streams=1, images_per_s=workload.shape[0] * many * len(times) / span, queries=len(times), samples_per_query=many,
        seconds=span, latency=quantile(found, q), early_stopping_ms=early_stopping(found, q),
        note=f"{NO_RESULT}{'' if seconds >= MLPERF_SECONDS else f', which takes {MLPERF_SECONDS:g} s'}",
    )  # fmt: skip


def _flood(slots: Sequence[Workload], seconds: float) -> tuple[list[float], list[float]]:
    """Keep every slot busy; return when requests started and ended."""
    starts: list[float] = []
    ends: list[float] = []
    until = time.perf_counter() + seconds

    def serve(slot: Workload) -> None:
        while time.perf_counter() < until:
            start = time.perf_counter()
            slot.call()
            starts.append(start)
            ends.append(time.perf_counter())

    _in_threads([partial(serve, slot) for slot in slots])
    return starts, ends


def _in_threads(works: Sequence[Callable[[], None]]) -> None:
    """Run all at once, and raise what the first of them raised."""
    failed: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=guarded, args=(w,), daemon=True) for w in works]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    if failed:
        raise BenchError("A request failed under load", f"{type(failed[0]).__name__}: {failed[0]}"[:300]) from failed[0]


def offered(slots: Sequence[Workload], arrivals: Values) -> Values:
    """Offer requests at given times, seconds from now; return the latency of each from when it was due, ms.

    Arrivals do not wait for answers: a server that falls behind is seen to.
    """
    waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    latency = np.zeros(len(arrivals))
    began = time.perf_counter() + 0.01

    def offer() -> None:
        for i, at in enumerate(arrivals):
            pause = began + at - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            waiting.put(i)
        for _ in slots:
            waiting.put(None)

    def serve(slot: Workload) -> None:
        while (i := waiting.get()) is not None:
            slot.call()
            latency[i] = 1e3 * (time.perf_counter() - began - arrivals[i])

    _in_threads([offer, *(partial(serve, slot) for slot in slots)])
    return latency


def _server(slots: Sequence[Workload], seconds: float, bound_ms: float, seed: int) -> Throughput:
    """Return the highest rate of eight tried whose 99th percentile meets the bound."""
    starts, ends = _flood(slots, min(seconds, 2.0))
    low, high = 0.0, len(ends) / (max(ends) - min(starts))
    best: Throughput | None = None
    last: Throughput | None = None
    for trial in range(TRIALS):
        rate = high * 0.9 if trial == 0 else (low + high) / 2.0
        gaps = np.random.default_rng(seed + trial).exponential(1.0 / rate, max(1, round(rate * seconds)))
        latency = offered(slots, np.cumsum(gaps))
        seen = float(np.quantile(latency, QUANTILES["server"]))
        met = seen <= bound_ms
        last = Throughput(
            scenario="server", streams=len(slots), images_per_s=rate * slots[0].shape[0], queries=len(latency), samples_per_query=1,
            seconds=seconds, latency=quantile(latency, QUANTILES["server"]), early_stopping_ms=early_stopping(latency, QUANTILES["server"]),
            bound_ms=bound_ms, met=met, rate=rate, note=f"Poisson arrivals, {TRIALS} rates tried; {NO_RESULT}",
        )  # fmt: skip
        if met:
            low, best = rate, last
        else:
            high = rate
    if best is not None:
        return best
    assert last is not None
    return last
