"""Measure throughput with several requests in flight.

The arrival patterns are those of MLPerf Inference, with durations of our own.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import msgspec
import numpy as np

from trtq.bench.engine_workload import count_of
from trtq.bench.record import Throughput
from trtq.bench.sampling import said, warm_up
from trtq.bench.statistics import Values, early_stopping, quantile
from trtq.bench.workload import Workload
from trtq.errors import BenchError

Scenario = Literal["closed", "single", "multi", "offline", "server"]
QUANTILES = {"single": 0.9, "multi": 0.99, "server": 0.99}
SAMPLES_PER_QUERY = {"multi": 8}
MLPERF_SECONDS = 600.0
# Counts that MLPerf's rules require beside the time: queries for early stopping at the scenario's
# quantile (99 % confidence), images of offline.
MLPERF_QUERIES = {"single": 64, "multi": 662, "server": 662}
MLPERF_IMAGES = {"offline": 24_576}
NO_RESULT = "the pattern is MLPerf Inference's; this is no MLPerf result"
TRIALS = 8
LOOK_S = 0.5


def measure_throughput(
    workload: Workload,
    *,
    scenario: Scenario = "closed",
    streams: int = 2,
    seconds: float = 3.0,
    bound_ms: float | None = None,
    seed: int = 0,
    between: Callable[[], object] = lambda: None,
    counts: bool = False,
) -> Throughput:
    """Serve requests for ``seconds`` after a warm-up and return the throughput.

    A failure or Ctrl-C ends the measurement early and is recorded in ``failed``.

    Args:
        workload: the model.
        scenario: ``closed``: as many in flight as streams. ``single``: the next when the last has
            ended. ``multi``: the same with 8 images a query. ``offline``: everything at once.
            ``server``: Poisson arrivals; the highest rate whose 99th percentile meets ``bound_ms``.
        streams: requests in flight (``closed``, ``offline``, ``server``).
        seconds: measured, for each rate that ``server`` tries.
        bound_ms: of ``server``.
        seed: of the arrivals.
        between: called about twice a second during the measurement.
        counts: continue until there are as many queries as MLPerf's rules ask for, however long
            that takes.

    Raises:
        BenchError: ``server`` without a bound, or not one request succeeds.
    """
    require_bound(scenario, bound_ms)
    warmup = warm_up(workload.call)
    if warmup.failed:
        raise BenchError("A request failed in the warm-up", warmup.failed)
    queries = MLPERF_QUERIES.get(scenario, 0) if counts else 0
    images = MLPERF_IMAGES.get(scenario, 0) if counts else 0
    if scenario in ("single", "multi"):
        throughput = _one_after_another(workload, scenario, seconds, between, least=queries)
    elif bound_ms is not None and scenario == "server":
        slots = _slots(workload, streams)
        throughput = _server(slots, seconds, bound_ms, seed, between, least=queries)
    else:
        least = math.ceil(images / count_of(workload.shapes))
        slots = _slots(workload, streams)
        throughput = _flooded(slots, scenario, seconds, between, least=least)
    return msgspec.structs.replace(throughput, warmup_calls=warmup.calls, stable=warmup.stable)


def require_bound(scenario: str, bound_ms: float | None) -> None:
    """Refuse the scenario ``server`` without a bound.

    Raises:
        BenchError: says what to give.
    """
    if scenario == "server" and bound_ms is None:
        raise BenchError(
            "The scenario server needs a bound",
            "it asks for the highest rate that meets one",
            "Give --latency-bound MS",
        )


def _slots(workload: Workload, streams: int) -> list[Workload]:
    """Return one request for each stream; each has been served once."""
    others = [workload.again() for _ in range(streams - 1)]
    for other in others:
        other.call()
    return [workload, *others]


def throughput_doubts(throughput: Throughput) -> list[str]:
    """Return why a throughput should not be used; empty for a good one."""
    reasons = []
    if throughput.failed:
        reasons.append(
            f"a request failed after {throughput.queries} good ones ({throughput.failed}): what "
            "was measured until then is kept"
        )
    if not throughput.stable:
        reasons.append(
            "the time of a request did not settle within 1 % in "
            f"{throughput.warmup_calls} requests of warm-up"
        )
    if throughput.scenario == "server" and not throughput.met:
        tail = throughput.latency
        assert tail is not None
        needs = f" ({throughput.queries} queries, its interval needs {tail.needs}: --duration)"
        reasons.append(
            "no rate that was tried surely keeps the 99th percentile under "
            f"{throughput.bound_ms:g} ms{'' if tail.value is not None else needs}"
        )
    return reasons


def _one_after_another(
    workload: Workload,
    scenario: Scenario,
    seconds: float,
    between: Callable[[], object],
    *,
    least: int,
) -> Throughput:
    q = QUANTILES[scenario]
    many = SAMPLES_PER_QUERY.get(scenario, 1)
    times: list[float] = []
    began = looked = time.perf_counter()
    failed = ""
    while (time.perf_counter() - began < seconds or len(times) < least) and not failed:
        start = time.perf_counter()
        try:
            for _ in range(many):
                workload.call()
        except (Exception, KeyboardInterrupt) as exc:
            failed = said(exc)
            break
        times.append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() - looked > LOOK_S:
            between()
            looked = time.perf_counter()
    span = time.perf_counter() - began
    if not times:
        raise BenchError("Not one query was served", failed or f"none ended within {seconds:g} s")
    note = "" if seconds >= MLPERF_SECONDS else f", which takes {MLPERF_SECONDS:g} s"
    return Throughput(
        scenario=scenario,
        streams=1,
        images_per_s=count_of(workload.shapes) * many * len(times) / span,
        queries=len(times),
        samples_per_query=many,
        seconds=span,
        latency=quantile(np.asarray(times), q),
        early_stopping_ms=early_stopping(np.asarray(times), q),
        failed=failed,
        note=f"{NO_RESULT}{note}",
    )


class _Crew:
    """Workers that stop together: when one fails, when time is up, or on Ctrl-C."""

    def __init__(self, between: Callable[[], object]) -> None:
        self.stop, self.failed, self.between = threading.Event(), "", between

    def run(self, works: Sequence[Callable[[], None]]) -> None:
        """Run all at once until they end."""

        def guarded(work: Callable[[], None]) -> None:
            try:
                work()
            except Exception as exc:
                self.failed = self.failed or said(exc)
                self.stop.set()

        threads = [threading.Thread(target=guarded, args=(w,)) for w in works]
        for t in threads:
            t.start()
        for t in threads:
            while t.is_alive():
                try:
                    t.join(LOOK_S)
                    self.between()
                except KeyboardInterrupt as exc:
                    self.failed = self.failed or said(exc)
                    self.stop.set()


def _flood(
    slots: Sequence[Workload], seconds: float, between: Callable[[], object], *, least: int = 0
) -> tuple[list[float], list[float], str]:
    """Keep every slot busy; return when requests started and ended, and what failed.

    Args:
        slots: requests that can run at the same time.
        seconds: no request starts later, once ``least`` have ended.
        between: called about twice a second.
        least: fewest requests.

    Returns:
        seconds of ``time.perf_counter``, in the order of the ends; the failure or "".

    Raises:
        BenchError: not one request succeeds.
    """
    starts: list[float] = []
    ends: list[float] = []
    until, crew = time.perf_counter() + seconds, _Crew(between)

    def serve(slot: Workload) -> None:
        while (time.perf_counter() < until or len(ends) < least) and not crew.stop.is_set():
            start = time.perf_counter()
            slot.call()
            starts.append(start)
            ends.append(time.perf_counter())

    crew.run([partial(serve, slot) for slot in slots])
    if not ends:
        raise BenchError(
            "Not one request was served", crew.failed or f"none ended within {seconds:g} s"
        )
    return starts, ends, crew.failed


def _flooded(
    slots: Sequence[Workload],
    scenario: Scenario,
    seconds: float,
    between: Callable[[], object],
    *,
    least: int,
) -> Throughput:
    starts, ends, failed = _flood(slots, seconds, between, least=least)
    span = max(ends) - min(starts)
    note = f"every request waits from the start; {NO_RESULT}" if scenario == "offline" else ""
    return Throughput(
        scenario=scenario,
        streams=len(slots),
        images_per_s=count_of(slots[0].shapes) * len(ends) / span,
        queries=len(ends),
        samples_per_query=1,
        seconds=span,
        note=note,
        failed=failed,
    )


def offered(
    slots: Sequence[Workload], arrivals: Values, between: Callable[[], object] = lambda: None
) -> tuple[Values, float, str]:
    """Offer requests at given times.

    Arrivals do not wait for answers, so a server that falls behind shows.

    Args:
        slots: requests that can run at the same time.
        arrivals: seconds from now [N], ascending.
        between: called about twice a second.

    Returns:
        the latency of each served one from when it was due, ms; the seconds until the last answer;
        and what failed, "" for nothing.
    """
    waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    latency = np.full(len(arrivals), np.nan)
    began, crew = time.perf_counter() + 0.01, _Crew(between)

    def offer() -> None:
        for i, at in enumerate(arrivals):
            crew.stop.wait(max(0.0, began + at - time.perf_counter()))
            if crew.stop.is_set():
                break
            waiting.put(i)
        for _ in slots:
            waiting.put(None)

    def serve(slot: Workload) -> None:
        while (i := waiting.get()) is not None and not crew.stop.is_set():
            slot.call()
            latency[i] = 1e3 * (time.perf_counter() - began - arrivals[i])

    crew.run([offer, *(partial(serve, slot) for slot in slots)])
    return latency[np.isfinite(latency)], time.perf_counter() - began, crew.failed


def _server(
    slots: Sequence[Workload],
    seconds: float,
    bound_ms: float,
    seed: int,
    between: Callable[[], object],
    *,
    least: int,
) -> Throughput:
    """Return the highest of eight tried rates whose 99th percentile surely meets the bound.

    The first rate is 90 % of what a flood of requests reaches; the others halve the interval
    between the highest rate that met the bound and the lowest that did not. Where none met it, the
    result is the last rate. A failure ends the search.
    """
    images = count_of(slots[0].shapes)
    result = partial(
        Throughput,
        scenario="server",
        streams=len(slots),
        samples_per_query=1,
        bound_ms=bound_ms,
    )
    starts, ends, failed = _flood(slots, min(seconds, 2.0), between)
    flooded_s = max(ends) - min(starts)
    if failed:
        return result(
            images_per_s=len(ends) * images / flooded_s,
            queries=len(ends),
            seconds=flooded_s,
            latency=quantile(1e3 * (np.asarray(ends) - np.asarray(starts)), QUANTILES["server"]),
            met=False,
            failed=failed,
            note=f"no rate was tried; {NO_RESULT}",
        )
    low, high = 0.0, len(ends) / flooded_s
    best: Throughput | None = None
    last: Throughput | None = None
    for trial in range(TRIALS):
        rate = high * 0.9 if trial == 0 else (low + high) / 2.0
        gaps = np.random.default_rng(seed + trial).exponential(
            1.0 / rate, max(1, round(rate * seconds), least)
        )
        latency, span, failed = offered(slots, np.cumsum(gaps), between)
        if not len(latency):
            raise BenchError("Not one request was served", failed)
        tail = quantile(latency, QUANTILES["server"])
        met = tail.high is not None and tail.high <= bound_ms
        last = result(
            images_per_s=len(latency) * images / span,
            queries=len(latency),
            seconds=span,
            latency=tail,
            early_stopping_ms=early_stopping(latency, QUANTILES["server"]),
            met=met,
            rate=rate,
            failed=failed,
            note=f"Poisson arrivals, {TRIALS} rates tried; {NO_RESULT}",
        )
        if failed:
            return last
        if met:
            low, best = rate, last
        else:
            high = rate
    assert last is not None
    return best if best is not None else last
