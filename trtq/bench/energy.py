"""Measure the energy per image under a steady load.

A sensor is read during the load, in windows that are long enough for it, and idle power is
subtracted.

Only the energy between two ticks of a counter (or between readings of power) counts, so a window
includes neither the start nor the end of the load. Images are counted over the same time.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtq.bench.meters.protocol import Meter
from trtq.bench.record import Energy
from trtq.errors import MeterError

MIN_TICKS, MIN_READINGS, MAX_APART = 50, 200, 0.05
INTERVAL_S, JITTER = 0.005, 0.2
SETTLE_S = 2.0  # a sensor that averages over a second has forgotten the idle time by then
MAX_GAP = (
    20  # intervals without a reading: a thread of Python beside a busy one comes late now and then
)


@dataclass(slots=True)
class Track:
    """Readings of a meter and when they came, seconds of the monotonic clock."""

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    failed: str = ""


class Recorder:
    """Reads a meter in a thread during a load.

    The intervals are jittered, so that the readings cannot synchronize with the load.
    """

    def __init__(self, meter: Meter, interval_s: float = INTERVAL_S) -> None:
        self.meter, self.interval_s, self.track = meter, interval_s, Track()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        draw = random.Random(0)  # noqa: S311
        while not self._stop.is_set():
            try:
                value = self.meter.read()
            except MeterError as exc:
                self.track.failed = exc.reason or exc.message
                return
            self.track.times.append(time.perf_counter())
            self.track.values.append(value)
            self._stop.wait(self.interval_s * draw.uniform(1 - JITTER, 1 + JITTER))

    def __enter__(self) -> Recorder:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class Power:
    """Mean power over an interval: watts, its ends in seconds, and the number of readings."""

    watts: float
    start: float
    end: float
    readings: int


def mean_power(
    track: Track, *, counter: bool, start: float, end: float, interval_s: float = INTERVAL_S
) -> Power:
    """Return the mean power between two times.

    A counter gives (last tick - first tick) over the time between those ticks; power is integrated
    by the trapezoid rule.

    Raises:
        MeterError: the meter died, went backwards, paused, or ticked less than twice.
    """
    times, values = np.asarray(track.times), np.asarray(track.values)
    inside = (times >= start) & (times <= end)
    if track.failed:
        raise MeterError("The meter stopped in the middle of a window", track.failed)
    if counter:
        if bool((np.diff(values) < 0).any()):
            raise MeterError(
                "The energy counter went backwards",
                "the driver was loaded again, or it wrapped around",
                "Measure again",
            )
        ticks = np.flatnonzero(inside[1:] & (np.diff(values) > 0)) + 1
        if len(ticks) < 2:
            raise MeterError(
                "The energy counter did not move",
                f"{len(ticks)} ticks in {end - start:.2f} s",
                "Measure longer",
            )
        first, last = ticks[0], ticks[-1]
        length = float(times[last] - times[first])
        return Power(
            float(values[last] - values[first]) / length,
            float(times[first]),
            float(times[last]),
            len(ticks),
        )
    times, values = times[inside], values[inside]
    if len(times) < 2:
        raise MeterError(
            "There are no readings in the window",
            f"{len(times)} in {end - start:.2f} s",
            "Measure longer",
        )
    if float(np.diff(times).max()) > MAX_GAP * interval_s:
        raise MeterError(
            "The readings of power have a gap",
            f"{np.diff(times).max():.2f} s without one, asked every {interval_s:g} s",
            "Measure on a machine with nothing else to do",
        )
    length = float(times[-1] - times[0])
    return Power(
        float(np.trapezoid(values, times)) / length, float(times[0]), float(times[-1]), len(times)
    )


def measure_energy(
    call: Callable[[], object],
    images: int,
    meter: Meter,
    *,
    window_s: float | None = None,
    repeats: int = 5,
    cooldown_s: float = 5.0,
    settle_s: float = SETTLE_S,
    rate: float | None = None,
    interval_s: float = INTERVAL_S,
    check: Meter | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> Energy:
    """Return the energy of one image.

    Args:
        call: serves one request.
        images: in a request.
        meter: what is read.
        window_s: length of a window, seconds; default: what the meter needs. A shorter one is
            marked as not valid.
        repeats: windows.
        cooldown_s: pause between them.
        settle_s: wait of a window after the load begins or ends, until earlier power no longer
            affects the sensor.
        rate: requests a second; None for one after another.
        interval_s: between two readings.
        check: a second meter of the same quantity; more than 5 % apart is not valid.
        told: receives progress.

    Raises:
        MeterError: the meter died, went backwards or did not move.
    """
    window_s = window_s or meter.min_window_s

    def idle() -> float:
        told(f"Idle power, model loaded: {window_s:g} s")
        time.sleep(settle_s)
        with Recorder(meter, interval_s) as recorder:
            began = time.perf_counter()
            time.sleep(window_s)
        return mean_power(
            recorder.track,
            counter=meter.counter,
            start=began,
            end=time.perf_counter(),
            interval_s=interval_s,
        ).watts

    before = idle()
    powers, rates, lengths, readings, apart = (
        list[float](),
        list[float](),
        list[float](),
        list[int](),
        0.0,
    )
    for i in range(repeats):
        time.sleep(cooldown_s if i else 0.0)
        told(f"Energy under load, window {i + 1} of {repeats}: {window_s:g} s")
        with Recorder(meter, interval_s) as recorder, _maybe(check, interval_s) as other:
            began = time.perf_counter() + settle_s
            done, now = _load(call, began + window_s, rate)
        found = mean_power(
            recorder.track, counter=meter.counter, start=began, end=now, interval_s=interval_s
        )
        if check is not None and other is not None:
            second = mean_power(
                other.track, counter=check.counter, start=began, end=now, interval_s=interval_s
            ).watts
            apart = max(apart, abs(second / found.watts - 1.0))
        powers.append(found.watts)
        rates.append(images * _requests(done, found.start, found.end) / (found.end - found.start))
        lengths.append(found.end - found.start)
        readings.append(found.readings)
    idle_w = (before + idle()) / 2.0
    gross = np.asarray(powers) / np.asarray(rates)
    net = (np.asarray(powers) - idle_w) / np.asarray(rates)
    reasons, least = [], MIN_TICKS if meter.counter else MIN_READINGS
    if window_s < meter.min_window_s:
        reasons.append(
            f"too short to measure: windows of {window_s:g} s, the sensor needs "
            f"{meter.min_window_s:g} s"
        )
    elif min(readings) < least:
        reasons.append(
            f"too short to measure: {min(readings)} {'ticks' if meter.counter else 'readings'} "
            f"in a window, needs {least}"
        )
    if apart > MAX_APART:
        reasons.append(f"{meter.name} and {check.name if check else ''} are {apart:.0%} apart")
    load = "one request after another" if rate is None else f"{rate:g} requests a second"
    return Energy(
        meter=meter.name,
        scope=meter.scope,
        method="counter" if meter.counter else "power integrated",
        load=load,
        gross_j=float(np.median(gross)),
        net_j=float(np.median(net)),
        low_j=float(gross.min()),
        high_j=float(gross.max()),
        power_w=float(np.median(powers)),
        idle_w=idle_w,
        images_per_s=float(np.median(rates)),
        window_s=min(lengths),
        repeats=repeats,
        readings=min(readings),
        valid=not reasons,
        reasons=reasons,
        limits=list(meter.limits),
    )


def _maybe(meter: Meter | None, interval_s: float) -> Any:
    return Recorder(meter, interval_s) if meter is not None else contextlib.nullcontext()


def _load(
    call: Callable[[], object], until: float, rate: float | None
) -> tuple[list[float], float]:
    """Serve requests until a time; return the end time of each and of the last."""
    done: list[float] = []
    due = time.perf_counter()
    while (now := time.perf_counter()) < until:
        if rate is not None:
            due += 1.0 / rate
            if due > now:
                time.sleep(due - now)
        call()
        done.append(time.perf_counter())
    return done, now


def _requests(done: list[float], start: float, end: float) -> float:
    """Return how many requests ended between two times.

    Requests in progress at either end count by the share that lies inside.
    """
    ends = np.asarray(done)
    counted = np.arange(1, len(ends) + 1, dtype=np.float64)
    return float(np.interp(end, ends, counted) - np.interp(start, ends, counted))
