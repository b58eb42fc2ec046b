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

import numpy as np
import numpy.typing as npt

from trtq.bench.meters.protocol import Meter
from trtq.bench.record import Energy
from trtq.bench.statistics import Values
from trtq.errors import MeterError

MIN_TICKS = 50
MIN_READINGS = 200
MAX_APART = 0.05
INTERVAL_S = 0.005
JITTER = 0.2
SETTLE_S = 2.0  # a sensor that averages over a second has forgotten the idle time by then
# Intervals without a reading: a thread of Python beside a busy one comes late now and then.
MAX_GAP = 20


@dataclass(slots=True)
class Track:
    """Readings of a meter and when they came.

    Attributes:
        times: seconds of ``time.perf_counter``, ascending.
        values: joules of a counter, or watts; as many as ``times``.
        failed: why the meter stopped answering, "" while it answers.
    """

    times: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    failed: str = ""


class Recorder:
    """Reads a meter in a thread while the ``with`` block runs.

    The intervals are jittered by 20 %, so that the readings cannot synchronize with the load.

    Args:
        meter: what is read.
        interval_s: mean time between two readings, seconds.

    Attributes:
        track: the readings so far.
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

    def power(self, start: float, end: float) -> Power:
        """Return the mean power between two times of ``time.perf_counter``; see :func:`mean_power`.

        Raises:
            MeterError: as for :func:`mean_power`.
        """
        return mean_power(
            self.track,
            counter=self.meter.counter,
            start=start,
            end=end,
            interval_s=self.interval_s,
        )


@dataclass(frozen=True, slots=True)
class Power:
    """Mean power over an interval.

    Attributes:
        watts: the mean.
        start, end: of the interval that the readings cover, seconds of ``time.perf_counter``; it
            is inside the requested one.
        readings: ticks of a counter, or readings of power.
    """

    watts: float
    start: float
    end: float
    readings: int


def mean_power(
    track: Track, *, counter: bool, start: float, end: float, interval_s: float = INTERVAL_S
) -> Power:
    """Return the mean power between two times.

    A counter gives (last tick - first tick) over the time between those ticks: 10 J at 1 s and 70 J
    at 4 s are 20 W. Power is integrated by the trapezoid rule.

    Args:
        track: readings, also from before and after the window.
        counter: whether they are joules of a counter, else watts.
        start: of the window, seconds of ``time.perf_counter``.
        end: of the window.
        interval_s: planned time between two readings; a gap of more than 20 of them is an error.

    Raises:
        MeterError: the meter died, went backwards, paused, or ticked less than twice.
    """
    if track.failed:
        raise MeterError("The meter stopped in the middle of a window", track.failed)
    times = np.asarray(track.times)
    values = np.asarray(track.values)
    inside = (times >= start) & (times <= end)
    if counter:
        return _counted_power(times, values, inside, end - start)
    return _integrated_power(times[inside], values[inside], end - start, interval_s)


def _counted_power(
    times: Values, values: Values, inside: npt.NDArray[np.bool_], seconds: float
) -> Power:
    """Return the power between the first and the last tick inside.

    A tick is a reading that is larger than the one before it: readings between two ticks repeat a
    value and tell nothing about when it was reached.

    Args:
        times: seconds [N].
        values: joules [N], of the whole track.
        inside: which readings are in the window [N].
        seconds: length of the window, for the error.
    """
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
            f"{len(ticks)} ticks in {seconds:.2f} s",
            "Measure longer",
        )
    first = ticks[0]
    last = ticks[-1]
    watts = float(values[last] - values[first]) / float(times[last] - times[first])
    return Power(watts, float(times[first]), float(times[last]), len(ticks))


def _integrated_power(times: Values, values: Values, seconds: float, interval_s: float) -> Power:
    """Return the power by the trapezoid rule over readings of the window alone.

    Args:
        times: seconds [N].
        values: watts [N].
        seconds: length of the window, for the error.
        interval_s: planned time between two readings.
    """
    if len(times) < 2:
        raise MeterError(
            "There are no readings in the window",
            f"{len(times)} in {seconds:.2f} s",
            "Measure longer",
        )
    gap = float(np.diff(times).max())
    if gap > MAX_GAP * interval_s:
        raise MeterError(
            "The readings of power have a gap",
            f"{gap:.2f} s without one, asked every {interval_s:g} s",
            "Measure on a machine with nothing else to do",
        )
    watts = float(np.trapezoid(values, times)) / float(times[-1] - times[0])
    return Power(watts, float(times[0]), float(times[-1]), len(times))


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergySettings:
    """How energy is measured.

    Attributes:
        window_s: length of a window, seconds; default: what the meter needs. A shorter one is
            marked as not valid.
        repeats: windows.
        cooldown_s: pause between them.
        settle_s: wait of a window after the load begins or ends, until earlier power no longer
            affects the sensor.
        rate: requests a second; None for one after another.
        interval_s: between two readings.
    """

    window_s: float | None = None
    repeats: int = 5
    cooldown_s: float = 5.0
    settle_s: float = SETTLE_S
    rate: float | None = None
    interval_s: float = INTERVAL_S

    @property
    def load(self) -> str:
        """How requests come, in words."""
        return (
            "one request after another" if self.rate is None else f"{self.rate:g} requests a second"
        )


@dataclass(frozen=True, slots=True)
class _Window:
    """One window under load: power, images a second, how far a second meter is apart."""

    power: Power
    images_per_s: float
    apart: float


def measure_energy(
    call: Callable[[], object],
    images: int,
    meter: Meter,
    settings: EnergySettings,
    *,
    check: Meter | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> Energy:
    """Return the energy of one image.

    Each window gives the mean power P and the images a second R. The energy is the median of P / R,
    and net of (P - idle) / R, where idle is the mean of idle power before and after all windows.

    Args:
        call: serves one request and waits for its answer.
        images: in a request.
        meter: what is read.
        settings: windows and load.
        check: a second meter of the same quantity; more than 5 % apart is not valid.
        report: receives progress.

    Returns:
        the record; ``valid`` is False with ``reasons`` where windows are shorter than the meter
        needs, have too few readings, or the two meters disagree.

    Raises:
        MeterError: the meter died, went backwards or did not move.
    """
    window_s = settings.window_s or meter.min_window_s
    report(f"Idle power, model loaded: {window_s:g} s")
    before = _idle_power(meter, window_s, settings)
    windows: list[_Window] = []
    for i in range(settings.repeats):
        time.sleep(settings.cooldown_s if i else 0.0)
        report(f"Energy under load, window {i + 1} of {settings.repeats}: {window_s:g} s")
        windows.append(_measure_window(call, images, meter, window_s, settings, check))
    report(f"Idle power, model loaded: {window_s:g} s")
    idle_w = (before + _idle_power(meter, window_s, settings)) / 2.0
    watts = np.asarray([w.power.watts for w in windows])
    rates = np.asarray([w.images_per_s for w in windows])
    gross = watts / rates
    readings = min(w.power.readings for w in windows)
    reasons = _short(meter, window_s, readings)
    apart = max(w.apart for w in windows)
    if check is not None and apart > MAX_APART:
        reasons.append(f"{meter.name} and {check.name} are {apart:.0%} apart")
    return Energy(
        meter=meter.name,
        scope=meter.scope,
        method="counter" if meter.counter else "power integrated",
        load=settings.load,
        gross_j=float(np.median(gross)),
        net_j=float(np.median((watts - idle_w) / rates)),
        low_j=float(gross.min()),
        high_j=float(gross.max()),
        power_w=float(np.median(watts)),
        idle_w=idle_w,
        images_per_s=float(np.median(rates)),
        window_s=min(w.power.end - w.power.start for w in windows),
        repeats=settings.repeats,
        readings=readings,
        valid=not reasons,
        reasons=reasons,
        limits=list(meter.limits),
    )


def _idle_power(meter: Meter, window_s: float, settings: EnergySettings) -> float:
    """Return the mean power with the model loaded and nothing to do, watts."""
    time.sleep(settings.settle_s)
    with Recorder(meter, settings.interval_s) as recorder:
        start = time.perf_counter()
        time.sleep(window_s)
    return recorder.power(start, time.perf_counter()).watts


def _measure_window(
    call: Callable[[], object],
    images: int,
    meter: Meter,
    window_s: float,
    settings: EnergySettings,
    check: Meter | None,
) -> _Window:
    """Return one window under load.

    The load begins ``settle_s`` before the window, and images are counted between the ends of the
    interval that the readings cover.
    """
    recorder = Recorder(meter, settings.interval_s)
    second = Recorder(check, settings.interval_s) if check is not None else None
    with recorder, second or contextlib.nullcontext():
        start = time.perf_counter() + settings.settle_s
        began = time.perf_counter()
        ends, now = _load(call, start + window_s, settings.rate)
    power = recorder.power(start, now)
    apart = abs(second.power(start, now).watts / power.watts - 1.0) if second is not None else 0.0
    requests = _requests(began, ends, power.start, power.end)
    return _Window(power, images * requests / (power.end - power.start), apart)


def _short(meter: Meter, window_s: float, readings: int) -> list[str]:
    """Return why windows are too short for a meter."""
    least = MIN_TICKS if meter.counter else MIN_READINGS
    if window_s < meter.min_window_s:
        return [
            f"too short to measure: windows of {window_s:g} s, the sensor needs "
            f"{meter.min_window_s:g} s"
        ]
    if readings < least:
        return [
            f"too short to measure: {readings} {'ticks' if meter.counter else 'readings'} in a "
            f"window, needs {least}"
        ]
    return []


def _load(
    call: Callable[[], object], until: float, rate: float | None
) -> tuple[list[float], float]:
    """Serve requests until a time; return the end of each and the time when the load was over."""
    ends: list[float] = []
    due = time.perf_counter()
    while (now := time.perf_counter()) < until:
        if rate is not None:
            due += 1.0 / rate
            if due > now:
                time.sleep(due - now)
        call()
        ends.append(time.perf_counter())
    return ends, now


def _requests(began: float, request_ends: list[float], start: float, end: float) -> float:
    """Return how many requests were served between two times.

    Requests in progress at either end count by the share that is inside. A request lasts from the
    end of the one before it, the first one from the start of the load.
    """
    ends = np.asarray([began, *request_ends])
    counted = np.arange(len(ends), dtype=np.float64)
    return float(np.interp(end, ends, counted) - np.interp(start, ends, counted))
