"""Figures from a board's readings and trtexec's log: times, load, memory, energy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from trtq.agent import Watch
from trtq.artifact import decode_json
from trtq.bench.record import Energy, Load, Memory, Phase, Timing
from trtq.bench.statistics import Values
from trtq.deploy.answers import Card, Clocks, Number, Step, Watched
from trtq.deploy.board import Board
from trtq.deploy.stream import MIB, gunzip
from trtq.engine.trtexec_log import TrtexecLog, read_times
from trtq.errors import BoardError, reason

WARMUP_MS = 2000
SETTLE_S, ENERGY_WINDOW_S, EDGE_S = 2.0, 20.0, 0.2
STILL_PINNED = 0.9  # a dip of a per cent is sampling noise
MIN_READINGS = 50  # INA3221 settles within some hundred ms; five a second over 20 s leave a hundred
MOST_MS = 1e7  # of one request
LIMITS = (
    "the carrier board is not in it",
    "one step of the sensor is 40 to 150 mW",
    "idle power is that of the board without the model",
    "one window: there is no range",
    "trtexec spins on one CPU core while it waits: that power is in it",
)
SUM_LIMIT = "a sum of monitored rails is less than what the board draws"


@dataclass(frozen=True)
class Readings:
    """The agent's readings, one array [N] a column of its table; NaN where there was none.

    Attributes:
        t: seconds of the board's monotonic clock.
        mw: power, mW.
        ram_bytes: memory in use.
        temp_c: the hottest sensor.
        gpu_hz: the GPU's clock.
        gpu_load: percent.
    """

    t: Values
    mw: Values
    ram_bytes: Values
    temp_c: Values
    gpu_hz: Values
    gpu_load: Values


@dataclass(frozen=True, kw_only=True)
class Run:
    """Result of one job on the board.

    Attributes:
        steps: what the agent says of each program; the last one is the timed run.
        watch: what it saw beside them.
        before, after: the state of the board.
        log: what trtexec printed in the timed run; ``loads``: in the loads before it.
        ms: GPU time of each request, float64 [N].
        seen: the readings beside it.
    """

    steps: list[Step]
    watch: Watched
    before: Card
    after: Card
    log: TrtexecLog
    loads: list[TrtexecLog]
    ms: Values
    seen: Readings

    @property
    def timed(self) -> Step:
        """The step that was measured."""
        return self.steps[-1]

    @property
    def starts(self) -> list[Step]:
        """The steps that only loaded the engine."""
        return self.steps[:-1]


def read_milliseconds(path: Path, board: Board) -> Values:
    """Return the GPU time of each request, ms [N], N > 0, without the warm-up.

    Args:
        path: trtexec's file of times, packed with gzip.
        board: its release decides the form of the file.

    Raises:
        BoardError: the file holds no usable times.
    """
    text = gunzip(path, board.name).decode("utf-8", "replace")
    times = read_times(text, board.release, warmup_ms=WARMUP_MS)
    ms = np.asarray(times.compute, dtype=np.float64)
    if not len(ms) or not (ms > 0).all() or not (ms < MOST_MS).all():
        raise BoardError(
            f"Cannot read the times of {board.name}",
            f"{len(ms)} times, expected some between 0 and {MOST_MS:g} ms",
        )
    return ms


class _Table(msgspec.Struct):
    columns: list[str]
    rows: list[
        tuple[
            Number | None, Number | None, Number | None, Number | None, Number | None, Number | None
        ]
    ]


def read_readings(path: Path, name: str) -> Readings:
    """Return the agent's readings.

    Args:
        path: of its table: JSON packed with gzip, at most 64 MiB unpacked.
        name: of the board, for messages.

    Raises:
        BoardError: it is damaged, or has other columns.
    """
    try:
        data = decode_json(gunzip(path, name, 64 * MIB), _Table)
    except msgspec.MsgspecError as exc:
        raise BoardError(f"Cannot read the readings of {name}", reason(exc)) from exc
    if data.columns != list(Watch.COLUMNS):
        raise BoardError(
            f"Cannot read the readings of {name}",
            f"it has {', '.join(data.columns)[:200]}, not {', '.join(Watch.COLUMNS)}",
        )
    rows = np.asarray(
        [[np.nan if v is None else v for v in r] for r in data.rows], dtype=np.float64
    ).reshape(-1, len(data.columns))
    return Readings(*rows.T)


def load_of(starts: list[Step], logs: list[TrtexecLog], gpu: Timing) -> list[Load]:
    """Return the load times of an engine.

    A load lasts from the start of the process until it begins to infer. Deserializing is separate
    where trtexec reports it.

    Args:
        starts: the steps that only loaded the engine.
        logs: what trtexec printed in each.
        gpu: times of requests, for the second one.

    Returns:
        one entry, ms; none where trtexec did not say when it began to infer.
    """
    whole = [1e3 * (s.marks["inference"] - s.begin) for s in starts if "inference" in s.marks]
    if not whole:
        return []
    apart = [1e3 * log.numbers["deserialized_s"] for log in logs if "deserialized_s" in log.numbers]
    phases = [_phase("deserialize", apart)] if len(apart) == len(whole) else []
    rest = [w - a for w, a in zip(whole, apart, strict=True)] if phases else whole
    phases.append(
        _phase(
            "process, libraries, reading, context" if phases else "process up to inference", rest
        )
    )
    second = Phase(
        name="next request (GPU time)", median=gpu.median.value or 0.0, low=gpu.min, high=gpu.max
    )
    return [
        Load(
            cache="warm",
            phases=phases,
            total=_phase("inference begins", whole),
            second=second,
            processes=len(whole),
            lazy="as the board has it",
        )
    ]


def _phase(name: str, values: list[float]) -> Phase:
    return Phase(name=name, median=float(np.median(values)), low=min(values), high=max(values))


def slowest_pinned(seen: Readings, timed: Step, clocks: Clocks) -> float | None:
    """Return what the pinned GPU clock fell to under load, as a share of its maximum.

    The result is None where it remained above 90 %, is not pinned or was not read.

    Args:
        seen: readings.
        timed: the timed run.
        clocks: of the board before it.
    """
    top = clocks.gpu.max_freq
    begin = timed.marks.get("inference", timed.begin)
    inside = seen.gpu_hz[(seen.t >= begin) & (seen.t <= timed.end)]
    inside = inside[~np.isnan(inside)]
    if not clocks.pinned or not top or not len(inside):
        return None
    share = float(np.median(inside)) / top
    return share if share < STILL_PINNED else None


def memory_of(
    timed: Step, starts: list[Step], seen: Readings, log: TrtexecLog, io: int
) -> tuple[Memory | None, str]:
    """Return how much the shared memory of CPU and GPU grew while the engine ran.

    The reference is the memory in use just before the first load.

    Args:
        timed: the timed run.
        starts: the loads before it, at least one.
        seen: readings.
        log: of the timed run; it has the sizes of weights and activations.
        io: bytes of the inputs.

    Returns:
        the memory and "", or None and why.
    """
    t, ram = seen.t, seen.ram_bytes
    before = ram[(t < starts[0].begin) & ~np.isnan(ram)]
    during = ram[(t >= timed.begin) & (t <= timed.end) & ~np.isnan(ram)]
    if not len(before) or not len(during):
        return None, "the board's memory could not be read beside the run"
    growth = int(during.max() - np.median(before))
    if growth <= 0:
        return (
            None,
            "the board's used memory did not grow while it ran: something else gave memory back",
        )
    whole = (
        "growth of the board's used memory, CPU and GPU together, trtexec and CUDA's libraries "
        "included"
    )
    sizes = {k: int(v) for k, v in log.numbers.items() if k.endswith("_bytes") and 0 <= v < 1 << 50}
    weights, activations = (
        sizes.get("weights_bytes"),
        sizes.get("activation_bytes", sizes.get("context_bytes")),
    )
    return Memory(
        weights=weights,
        activations=activations,
        io=io,
        process=growth,
        process_peak=growth,
        device=growth,
        sources={
            "process": whole,
            "device": whole,
            "weights": "trtexec's log",
            "activations": "trtexec's log",
            "io": "the inputs",
        },
    ), ""


def energy_of(run: Run, batch: int) -> tuple[Energy | None, str]:
    """Return the energy per image, or why there is none.

    It is the mean power over the timed run without its edges, divided by the images served per
    second; net is without the power of the idle board before and after it.

    Args:
        run: of the job.
        batch: images in a request.

    Returns:
        the energy and "", or None and why.
    """
    timed, watch, t, mw = run.timed, run.watch, run.seen.t, run.seen.mw
    rate = run.log.numbers.get("throughput_qps")
    if watch.failed:
        return None, watch.failed
    power_mask = ~np.isnan(mw)
    if not power_mask.any():
        return None, watch.scope or "the board has no power rails that can be read"
    if rate is None or not 0 < rate < 1e9 or "inference" not in timed.marks:
        return None, "trtexec did not say when inference began, or how many requests it served"
    inside, idle = (power_mask & part for part in _windows(timed, t))
    if inside.sum() < 2 or idle.sum() < 2:
        counts = f"{int(inside.sum())} readings under load and {int(idle.sum())} idle"
        return None, f"{counts} are too few"
    if not (np.diff(t[inside]) > 0).all():
        return None, "the times of the readings do not grow"
    window, readings, images = float(t[inside][-1] - t[inside][0]), int(inside.sum()), rate * batch
    power = float(np.trapezoid(mw[inside], t[inside]) / window) / 1e3
    rest = float(np.mean(mw[idle])) / 1e3
    short = readings < MIN_READINGS or window < 0.8 * ENERGY_WINDOW_S
    reasons = [f"too short to measure: {readings} readings in {window:.1f} s"] * short
    summed = watch.scope.startswith("sum")
    return Energy(
        meter=watch.source,
        scope=watch.scope,
        method="power integrated",
        load="trtexec, requests one after another",
        gross_j=power / images,
        net_j=(power - rest) / images,
        low_j=power / images,
        high_j=power / images,
        power_w=power,
        idle_w=rest,
        images_per_s=images,
        window_s=window,
        repeats=1,
        readings=readings,
        valid=not reasons,
        reasons=reasons,
        limits=[*LIMITS, *[SUM_LIMIT] * summed],
    ), ""


def _windows(timed: Step, t: Values) -> tuple[np.ndarray, np.ndarray]:
    """Return which readings are of the timed run without its edges, and which of the idle board.

    Under load: from 2 s after the first request to 0.2 s before the end. Idle: the 18 s before the
    run without the last 0.2 s, and what is 2 s behind it.

    Args:
        timed: the timed run.
        t: times of the readings [N].

    Returns:
        two arrays of bool [N].
    """
    begin = timed.marks["inference"] + SETTLE_S
    end = timed.marks.get("end", timed.end) - EDGE_S
    before = (t > timed.begin - ENERGY_WINDOW_S + SETTLE_S) & (t < timed.begin - EDGE_S)
    return (t >= begin) & (t <= end), before | (t > timed.end + SETTLE_S)
