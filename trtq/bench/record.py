"""Records of ``trtq bench``: figures, how they were measured, and why some are missing."""

from __future__ import annotations

from typing import Any

import msgspec

from trtq.artifact import Environment, Record
from trtq.bench.machine_card import Card
from trtq.bench.statistics import Drift, Outliers, Quantile
from trtq.terminal import stack
from trtq.typed import present


class RowSettings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Settings that change the meaning of a row's times; None where one does not apply.

    Attributes:
        transfers: whether copies are in the times; ``wait``: how the host waits for the device.
        graph: whether a CUDA graph was launched, and why not.
        scenario, streams, latency_bound: of the throughput; ``rate``: requests per second.
        power_mode, clocks, warmup_ms: of a board.
    """

    runtime: str | None = None
    transfers: str | bool | None = None
    wait: str | None = None
    graph: str | None = None
    scenario: str | None = None
    streams: int | None = None
    latency_bound: float | None = None
    rate: float | None = None
    power_mode: str | None = None
    clocks: str | None = None
    warmup_ms: int | None = None


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Times of single requests.

    Attributes:
        kind: ``e2e`` (host clock, from input to answer in host memory), ``gpu`` (event pair around
            the launch), ``enqueue`` (host time in the launch).
        unit: ``ms``.
        median, percentiles: with 95 % intervals between order statistics.
        min, max, mean: for diagnosis; min and max depend on the number of samples.
        samples, effective: taken, and how many independent ones tell as much.
        outliers, drift: they remain in every figure.
        blocks: medians of the blocks, in the order they were taken.
        stopped: which rule ended the run.
        file, file_sha256: the samples themselves, nanoseconds, int64, as .npy; "" when nothing was
            written.
    """

    kind: str
    unit: str = "ms"
    median: Quantile
    percentiles: list[Quantile]
    min: float
    max: float
    mean: float
    samples: int
    effective: int
    outliers: Outliers
    drift: Drift
    blocks: list[float]
    stopped: str
    file: str = ""
    file_sha256: str = ""


class Throughput(msgspec.Struct, frozen=True, kw_only=True):
    """Requests served at the same time.

    Attributes:
        scenario: ``closed`` (as many in flight as streams), ``single``, ``multi``, ``offline``,
            ``server``: patterns of MLPerf Inference at durations of our own, which are no MLPerf
            results.
        streams: requests in flight.
        images_per_s: images whose answers arrived, over the time between the first start and the
            last answer.
        queries: served; ``samples_per_query`` images each times the batch.
        seconds: measured.
        latency: of a query from when it was due, ms, where the scenario asks for one.
        bound_ms, met: of ``server``.
        early_stopping_ms: MLPerf's estimate of the scenario's quantile; None with too few queries.
        rate: queries a second that ``server`` was offered.
        failed: what ended it early; the rest is what was measured until then.
        warmup_calls, stable: of the warm-up.
        note: what to know about it.
    """

    scenario: str
    streams: int
    images_per_s: float
    queries: int
    samples_per_query: int
    seconds: float
    latency: Quantile | None = None
    early_stopping_ms: float | None = None
    bound_ms: float | None = None
    met: bool | None = None
    rate: float | None = None
    failed: str = ""
    warmup_calls: int = 0
    stable: bool = True
    note: str = ""


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """One part of a start, over new processes.

    Attributes:
        name: what happens in it.
        median, low, high: ms; smallest and largest of the processes.
    """

    name: str
    median: float
    low: float
    high: float


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """A start in a new process, up to the first answer.

    Attributes:
        cache: ``warm`` (the file is in the page cache) or ``cold`` (it was dropped from it).
        phases: start of Python with its imports, reading, deserializing, context, first answer.
        total: from the start of the process to the first answer, ms: the phases add up to it.
        second: the next request, ms.
        processes: how many starts.
        lazy: how CUDA loads modules, where it does.
    """

    cache: str
    phases: list[Phase]
    total: Phase
    second: Phase
    processes: int
    lazy: str


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """The memory of a fresh process, bytes; each with its source in ``sources``.

    Attributes:
        weights, activations: by the engine's own account.
        io: inputs and outputs.
        process: growth of the process from before the file was read to after the requests, and its
            peak.
        device: growth of what all processes hold on the GPU, or of the one memory that GPU and CPU
            share on a Jetson: that is then in it whole, and not to be added to ``process``. None on
            a CPU.
    """

    weights: int | None
    activations: int | None
    io: int
    process: int
    process_peak: int
    device: int | None
    sources: dict[str, str]


class Energy(msgspec.Struct, frozen=True, kw_only=True):
    """Energy per request.

    Attributes:
        meter, scope: what was read, and what it covers: ``GPU board``, ``CPU package``, a Jetson's
            input rail.
        method: ``counter`` or ``power integrated``.
        load: how requests came: one after another, or at a rate.
        gross_j, net_j: per image, median over repeats; net is without the idle power.
        low_j, high_j: range of the repeats, gross.
        power_w, idle_w: mean power under load, and with the model loaded and nothing to do.
        images_per_s: in the same windows.
        window_s, repeats, readings: length of a window, how many, and ticks of the counter or power
            readings in the shortest.
        valid, limits: False with the reason where the window was too short; what the sensor cannot
            see.
    """

    meter: str
    scope: str
    method: str
    load: str
    gross_j: float
    net_j: float
    low_j: float
    high_j: float
    power_w: float
    idle_w: float
    images_per_s: float
    window_s: float
    repeats: int
    readings: int
    valid: bool
    reasons: list[str]
    limits: list[str]
    state: dict[str, Any] = {}


class LayerTime(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of the profile.

    Use the shares, not the sums: a profiler slows things down.

    Attributes:
        name: as the runtime calls it.
        module: the module of the model that it belongs to.
        kind: its ONNX op; ``layer`` for engines.
        ms: per request.
        share: of the time of all layers, 0 to 1.
        predicted_ms: by the roofline of the device; None where there is no prediction.
    """

    name: str
    module: str
    kind: str
    ms: float
    share: float
    predicted_ms: float | None = None


class SecondOpinion(msgspec.Struct, frozen=True, kw_only=True):
    """Result of trtexec on the same engine with the same settings.

    Attributes:
        version: of trtexec, such as ``10.3``.
        command: as it ran; the files of integer inputs in it are gone.
        gpu_ms: its median GPU time.
        latency_ms: its median latency: copies and GPU time.
        difference: its GPU time over ours, less 1; None where ours was not measured.
        note: what to know about it.
    """

    version: str
    command: str
    gpu_ms: float
    latency_ms: float
    difference: float | None
    note: str


class BenchRow(msgspec.Struct, frozen=True, kw_only=True):
    """One file with one batch on one device in one mode.

    Attributes:
        file_sha256, file_bytes: of the file, and of the files with its tensors.
        kind: ``onnx`` or ``engine``.
        device: as the workload labels itself.
        mode: ``latency``, ``throughput``, ``paced`` or ``cold``.
        batch: samples in a request.
        input_shape: of the first input.
        input_shapes: of every input by name; empty in records of earlier versions.
        repeats: medians, ms, or images a second, of each repeat; empty for one.
        unavailable: by figure, why there is none; never a zero.
        warmup_calls: requests before the first sample.
        valid, reasons: False with the reasons when the figures should not be used.
        state: clocks, temperatures and load before and after.
        notes: what does not make a figure invalid.
    """

    file: str
    file_sha256: str
    file_bytes: int
    kind: str
    device: str
    mode: str
    batch: int
    input_shape: list[int]
    input_shapes: dict[str, list[int]] = {}
    e2e: Timing | None = None
    gpu: Timing | None = None
    enqueue: Timing | None = None
    throughput: Throughput | None = None
    load: list[Load] = []
    memory: Memory | None = None
    energy: Energy | None = None
    layers: list[LayerTime] = []
    trtexec: SecondOpinion | None = None
    repeats: list[float] = []
    unavailable: dict[str, str] = {}
    warmup_calls: int = 0
    settings: RowSettings
    state: dict[str, Any] = {}
    valid: bool
    reasons: list[str]
    notes: list[str] = []

    @property
    def request_shape(self) -> dict[str, list[int]] | list[int]:
        """The shapes of the inputs: rows must share them to be compared."""
        return self.input_shapes if len(self.input_shapes) > 1 else self.input_shape

    @property
    def latencies(self) -> dict[str, Timing]:
        """Times of a request by kind, ``e2e`` before ``gpu``, as far as there are any."""
        return {k: t for k, t in (("e2e", self.e2e), ("gpu", self.gpu)) if t is not None}

    @property
    def median_ms(self) -> float | None:
        """Median end-to-end time of a request.

        On a board, where only trtexec runs, it is the median GPU time.
        """
        timing = self.e2e or self.gpu
        return timing.median.value if timing is not None else None

    @property
    def summary(self) -> str:
        """One line for a person."""
        parts = [f"{self.device}, {self.mode}, batch {self.batch}", *self._timing_parts()]
        if self.throughput is not None:
            t = self.throughput
            parts.append(f"{t.scenario}: {t.images_per_s:.1f} images/s with {t.streams} in flight")
        parts += [
            f"{load.total.name} {load.total.median:.0f} ms after the start ({load.cache})"
            for load in self.load
        ]
        if self.memory is not None:
            parts.append(f"{self.memory.process / 1e6:.0f} MB of process memory")
        if self.energy is not None:
            parts.append(
                f"{1e3 * self.energy.gross_j:.3g} mJ an image ({self.energy.scope}, gross)"
            )
        if self.settings.graph is not None:
            parts.append(f"CUDA graph {self.settings.graph}")
        parts.append("VALID" if self.valid else f"NOT VALID: {'; '.join(self.reasons)}")
        return ", ".join(parts)

    def _timing_parts(self) -> list[str]:
        timings = present((self.e2e, self.gpu, self.enqueue))
        parts = [f"{t.kind} {shown(t.median, samples=t.effective)}" for t in timings]
        timing = self.e2e or self.gpu
        if timing is None:
            return parts
        high = [p for p in timing.percentiles if p.q > 0.5]
        parts += [f"p{100 * p.q:g} {shown(p, samples=timing.effective)}" for p in high]
        return [*parts, f"{timing.samples} samples"]


def shown(value: Quantile, *, samples: int | None = None) -> str:
    """Format a quantile with its interval in ms, or why there is none.

    Args:
        value: of times in ms.
        samples: number of independent samples that it comes from, for the text without an interval.
    """
    if value.low is None or value.high is None:
        size = "" if samples is None else f"effective sample size {samples}, "
        missing = f"n/a ({size}needs {value.needs})"
        return missing if value.value is None else f"{value.value:.3f} ms [{missing}]"
    return f"{value.value:.3f} ms [{value.low:.3f}, {value.high:.3f}]"


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """Two files taking turns on one device.

    Attributes:
        ratio, low, high: time of the second over time of the first, with its 95 % interval.
        noise: how far from 1 the first came against a second load of itself, interval included.
        outcome: ``faster``, ``slower`` or ``no measurable difference``: of the second file.
        advice: what follows, in a sentence.
        loads: how often each was loaded and timed (the first twice as often).
        batch: images in a request.
        ate: layers that took more time than in the first file, ms, where both have a profile.
    """

    first: str
    second: str
    device: str
    first_ms: float
    second_ms: float
    ratio: float
    low: float
    high: float
    noise: float
    outcome: str
    advice: str
    loads: int
    valid: bool
    reasons: list[str]
    ate: list[LayerTime] = []
    batch: int = 1

    @property
    def summary(self) -> str:
        """One line for a person."""
        outcome = (
            f"{self.second} is {self.outcome} than {self.first}"
            if self.outcome in ("faster", "slower")
            else (f"{self.second} and {self.first}: {self.outcome}")
        )
        valid = "" if self.valid else f"; NOT VALID: {'; '.join(self.reasons)}"
        times = (
            f"{self.first_ms:.3f} to {self.second_ms:.3f} ms, "
            f"{self.device}{f', batch {self.batch}' if self.batch != 1 else ''}"
        )
        how = (
            f"{self.loads} loads of each taking turns; the first against itself up to "
            f"{self.noise:.1%}"
        )
        return (
            f"{outcome}: time x {self.ratio:.4f} [{self.low:.4f}, {self.high:.4f}] ({times}; "
            f"{how}){f'. {self.advice}' if self.advice else ''}{valid}"
        )


class BenchRecord(Record, frozen=True, kw_only=True):
    """Everything one call of ``trtq bench`` measured; written as bench.json.

    Attributes:
        rows: one for each file and batch.
        verdicts: of INT8 files against their float baseline, measured taking turns in the same run.
        card: the machine.
        command: the line that repeats it.
    """

    command: str
    rows: list[BenchRow]
    verdicts: list[Verdict]
    card: Card
    valid: bool
    notes: list[str]
    seconds: float
    environment: Environment

    @property
    def summary(self) -> str:
        """The lines of every row and verdict."""
        many = len({r.file for r in self.rows}) > 1
        lines = [f"{r.file + ': ' if many else ''}{r.summary}" for r in self.rows]
        return stack([*lines, *(v.summary for v in self.verdicts)])
