"""One file with one batch, measured in one mode: every figure, and why some are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from trtq.artifact import sha256_file, write_atomic
from trtq.bench.energy import EnergySettings, measure_energy
from trtq.bench.engine_workload import EngineWorkload, count_of
from trtq.bench.latency import cold, doubts, measure_latency, paced, summarize
from trtq.bench.layers import profile_layers
from trtq.bench.meters.jetson import JetsonRails, is_jetson
from trtq.bench.meters.nvml import Gpu, NvmlPower
from trtq.bench.meters.protocol import Meter
from trtq.bench.meters.rapl import Rapl
from trtq.bench.record import BenchRow, Energy, LayerTime, Load, Memory, SecondOpinion, Timing
from trtq.bench.sampling import Samples, StopRule, Warmup, loop_overhead, said
from trtq.bench.startup import measure_load, measure_memory
from trtq.bench.system_info import Watch
from trtq.bench.throughput import MLPERF_SECONDS, measure_throughput, throughput_doubts
from trtq.bench.trtexec_bench import Fed, second_opinion
from trtq.bench.workload import LoadOptions, Workload, device_for, device_of_load
from trtq.engine.open_engine import is_engine
from trtq.errors import BenchError, MeterError, TrtqError
from trtq.export.onnx_file import require_files
from trtq.progress import Progress
from trtq.specs import BenchSpec

PACED_SAMPLES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchContext:
    """Values that all rows of one call share.

    Attributes:
        spec: what is measured.
        gpu: through NVML, where there is one.
        why_no_gpu: why there is none.
        out: folder of the samples, None where they are not kept.
        progress: receives what happens.
    """

    spec: BenchSpec
    gpu: Gpu | None
    why_no_gpu: str
    out: Path | None
    progress: Progress


@dataclass(frozen=True, slots=True)
class _Latency:
    """Samples by kind, the warm-up before them, and lines about how they were taken."""

    samples: dict[str, Samples]
    warmup: Warmup
    notes: tuple[str, ...] = ()


class RowMeasurement:
    """Measures one file with one batch.

    Args:
        context: of the call.
        path: of the file.
        batch: samples in a request.

    Attributes:
        interrupted: whether Ctrl-C ended it.
        reasons, notes, unavailable, figures: fields of the row, as far as it was measured.

    Raises:
        ExportError: the ONNX file cannot be read.
    """

    def __init__(self, context: BenchContext, path: Path, batch: int) -> None:
        self.spec = context.spec
        self.out = context.out
        self.progress = context.progress
        self.why_no_gpu = context.why_no_gpu
        self.path = path
        self.device = device_for(self.spec.device, path)
        self.gpu = context.gpu if self.device != "cpu" else None
        device = device_of_load(self.spec.device, path)
        self.options = replace(load_options(self.spec, batch), device=device)
        self.batch = batch
        self.sha256, self.files = require_files(path)
        self.interrupted = False
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.unavailable: dict[str, str] = {}
        self.figures: dict[str, Any] = {}
        self.warmup_calls = 0
        self.rule = _rule(self.spec)

    def measure(self) -> BenchRow:
        """Load the file and measure every requested figure.

        A request that fails ends the row, and what was measured until then is kept.

        Raises:
            BenchError: there is no such file.
            EngineError, ExportError: it cannot be loaded.
        """
        workload = self.options.open(self.path)
        self.notes += workload.notes
        watch = Watch(self.device, self.gpu)
        failed = self._repeats(workload, watch)
        watch.look()
        self.reasons += watch.reasons()
        self.unavailable |= watch.unwatched()
        if not failed:
            self._extra_figures(workload)
        return BenchRow(
            file=str(self.path),
            file_sha256=self.sha256,
            file_bytes=sum(f.stat().st_size for f in self.files),
            kind="engine" if is_engine(self.path) else "onnx",
            device=workload.label,
            mode=self.spec.mode,
            batch=count_of(workload.shapes) if self.spec.shapes else self.batch,
            input_shape=workload.shape,
            input_shapes=workload.shapes,
            unavailable=self.unavailable,
            warmup_calls=self.warmup_calls,
            settings=msgspec.structs.replace(workload.settings, **_mode_settings(self.spec)),
            state={**watch.summary(), "loop_overhead_us": round(loop_overhead(10_000), 3)},
            valid=not self.reasons,
            reasons=self.reasons,
            notes=self.notes,
            **self.figures,
        )

    def _repeats(self, workload: Workload, watch: Watch) -> bool:
        """Measure the mode as often as requested; return whether a request failed.

        Each repeat loads the file again.
        """
        spec = self.spec
        spread: list[float] = []
        for i in range(spec.repeat):
            title = f"{self.path.name}, batch {self.batch}: {spec.mode}"
            self.progress.begin(title + (f", {i + 1} of {spec.repeat}" if i else ""), 0)
            before = len(self.reasons)
            loaded = self.options.open(self.path) if i else workload
            failed, figure = self._mode(loaded, watch, first=i == 0)
            if i:
                self.reasons[before:] = [f"repeat {i + 1}: {r}" for r in self.reasons[before:]]
            if figure is not None:
                spread.append(figure)
            if failed:
                self.interrupted = "KeyboardInterrupt" in failed
                return True
        if len(spread) > 1:
            self.figures["repeats"] = spread
            self.notes.append(
                f"{len(spread)} repeats: {', '.join(f'{v:.4g}' for v in spread)} "
                f"({max(spread) / min(spread) - 1.0:.1%} apart)"
            )
        return False

    def _mode(self, workload: Workload, watch: Watch, *, first: bool) -> tuple[str, float | None]:
        """Measure the mode once; return what failed, and the figure that repeats compare."""
        if self.spec.mode == "throughput":
            return self._throughput(workload, watch, first=first)
        modes = {"latency": self._latency, "paced": self._paced, "cold": self._cold}
        latency = modes[self.spec.mode](workload, watch)
        if first:
            self.notes += latency.notes
        self._keep(latency, first=first)
        total = latency.samples["e2e"]
        median = float(np.median(total.ms)) if len(total.ns) else None
        return next((s.failed for s in latency.samples.values() if s.failed), ""), median

    def _throughput(
        self, workload: Workload, watch: Watch, *, first: bool
    ) -> tuple[str, float | None]:
        spec = self.spec
        try:
            throughput = measure_throughput(
                workload,
                scenario=spec.scenario,
                streams=spec.streams,
                seconds=self.rule.seconds,
                bound_ms=spec.latency_bound,
                between=watch.between,
                counts=spec.mlperf_like,
            )
        except BenchError as exc:  # not one request was served
            if first:
                self.unavailable["throughput"] = str(exc)
            self.reasons.append(str(exc))
            return str(exc), None
        if first:
            self.figures["throughput"] = throughput
            self.warmup_calls = throughput.warmup_calls
        self.reasons += throughput_doubts(throughput)
        return throughput.failed, throughput.images_per_s

    def _latency(self, workload: Workload, watch: Watch) -> _Latency:
        if not workload.apart:
            self.unavailable |= dict.fromkeys(("gpu", "enqueue"), workload.why_whole)
        return _Latency(*measure_latency(workload, self.rule, watch))

    def _paced(self, workload: Workload, watch: Watch) -> _Latency:
        rate = self.spec.rate
        samples, warmup, late = paced(workload, rate, self._few_samples(), watch)
        if late > 0.01:
            self.reasons.append(
                f"{late:.0%} of the requests were due before the one before them had ended: "
                "--rate is too high"
            )
        return _Latency({"e2e": samples}, warmup, (f"{rate:g} requests a second",))

    def _cold(self, workload: Workload, watch: Watch) -> _Latency:
        samples, warmup, emptied = cold(workload, self._few_samples(), watch)
        return _Latency({"e2e": samples}, warmup, (f"emptied before each request: {emptied}",))

    def _few_samples(self) -> StopRule:
        """Return the rule of modes whose requests take long."""
        return replace(self.rule, samples=min(self.rule.samples, PACED_SAMPLES))

    def _keep(self, latency: _Latency, *, first: bool) -> None:
        """Summarize the samples, write those of the first run, and judge them."""
        percentiles = [p / 100.0 for p in self.spec.percentiles]
        for kind, samples in latency.samples.items():
            if not len(samples.ns):
                self.unavailable[kind] = f"a request failed {samples.failed}"
                self.reasons.append(self.unavailable[kind])
                continue
            timing = summarize(kind, samples, percentiles)
            prefix = "" if kind == "e2e" else f"{kind}: "
            self.reasons += [f"{prefix}{d}" for d in doubts(timing, latency.warmup, samples)]
            if first:
                self.warmup_calls = latency.warmup.calls
                self.figures[kind] = self._write_samples(timing, samples)
        if first:
            self._note_enqueue()

    def _write_samples(self, timing: Timing, samples: Samples) -> Timing:
        """Write the samples where there is a folder for them; return the timing that names them."""
        if self.out is None:
            return timing
        name = (
            f"{self.path.stem}.{self.sha256[:8]}.b{self.batch}.{self.spec.mode}.{timing.kind}.npy"
        )
        write_atomic(self.out / name, lambda path: _save(path, samples.ns))
        return msgspec.structs.replace(timing, file=name, file_sha256=sha256_file(self.out / name))

    def _note_enqueue(self) -> None:
        gpu = self.figures.get("gpu")
        enqueue = self.figures.get("enqueue")
        if gpu is None or enqueue is None:
            return
        if enqueue.median.value > 0.8 * gpu.median.value:
            self.notes.append(
                "enqueue-bound: the host takes over 80 % of the GPU's time to launch it; a CUDA "
                "graph or a larger batch helps"
            )

    def _extra_figures(self, workload: Workload) -> None:
        """Measure what was requested beside the mode, and note what fails with its reason."""
        spec = self.spec
        figures: dict[str, tuple[bool, Callable[[], Any]]] = {
            "energy": (spec.energy, lambda: self._energy(workload)),
            "load": (spec.load, self._load),
            "memory": (spec.memory, self._memory),
            "layers": (spec.profile, lambda: self._layers(workload)),
            "trtexec": (spec.trtexec, lambda: self._trtexec(workload)),
        }
        for name, (requested, measure) in figures.items():
            if not requested or self.interrupted:
                continue
            self.progress.begin(f"{self.path.name}: {name}", 0)
            try:
                self.figures[name] = measure()
            except TrtqError as exc:
                self.unavailable[name] = _brief(exc)
            except (Exception, KeyboardInterrupt) as exc:  # any error of a runtime
                self.interrupted = isinstance(exc, KeyboardInterrupt)
                self.unavailable[name] = said(exc)
                self.reasons.append(f"{name}: {said(exc)}")

    def _energy(self, workload: Workload) -> Energy:
        spec = self.spec
        if spec.mode in ("throughput", "cold"):
            raise MeterError(
                "Energy is not measured in this mode",
                "its load is another one",
                "Use --mode latency or --mode paced",
            )
        meter = open_meter(self.device, self.gpu, self.why_no_gpu)
        watch = Watch(self.device, self.gpu)
        settings = EnergySettings(
            window_s=spec.energy_window,
            repeats=spec.energy_repeats,
            cooldown_s=5.0 if self.device != "cpu" else 1.0,
            rate=spec.rate if spec.mode == "paced" else None,
        )
        energy = measure_energy(
            workload.call,
            count_of(workload.shapes),
            meter,
            settings,
            check=NvmlPower(self.gpu) if self.gpu is not None and meter.counter else None,
            report=self.progress.status,
        )
        watch.look()
        reasons = [*energy.reasons, *watch.reasons()]
        self.reasons += [f"energy: {r}" for r in reasons]
        return msgspec.structs.replace(
            energy, reasons=reasons, valid=not reasons, state=watch.summary()
        )

    def _load(self) -> list[Load]:
        loads = [measure_load(self.path, self.options, self.files)]
        try:
            loads.append(measure_load(self.path, self.options, self.files, cache="cold"))
        except BenchError as exc:
            self.unavailable["cold start"] = f"{exc.message}: {exc.reason}"
        return loads

    def _memory(self) -> Memory:
        return measure_memory(self.path, self.options, self.files)

    def _layers(self, workload: Workload) -> list[LayerTime]:
        rows, why = profile_layers(workload, self.path)
        if why:
            self.unavailable["predicted layer times"] = why
        return rows

    def _trtexec(self, workload: Workload) -> SecondOpinion:
        if not isinstance(workload, EngineWorkload):
            raise BenchError("No second opinion", "trtexec reads engines, this is an ONNX file")
        return second_opinion(
            self.path,
            self.figures.get("gpu"),
            Fed.of(workload.feed, workload.open_inputs),
            graph=self.spec.cuda_graph,
        )


def load_options(spec: BenchSpec, batch: int, *, graph: bool = True) -> LoadOptions:
    """Return how the files of a call are loaded, ``batch`` samples in a request."""
    return LoadOptions(
        device=spec.device,
        batch=batch,
        graph=graph and spec.cuda_graph,
        trust=spec.trust,
        shapes=spec.shapes,
    )


def _rule(spec: BenchSpec) -> StopRule:
    least = MLPERF_SECONDS if spec.mlperf_like else 0.0
    return StopRule(
        seconds=least or spec.duration,
        samples=spec.min_samples,
        limit_s=max(spec.max_duration, least, spec.duration),
    )


def _mode_settings(spec: BenchSpec) -> dict[str, Any]:
    """Return the settings of the mode, which two rows must share to be compared."""
    if spec.mode == "throughput":
        return {
            "scenario": spec.scenario,
            "streams": spec.streams,
            "latency_bound": spec.latency_bound,
        }
    return {"rate": spec.rate} if spec.mode == "paced" else {}


def _brief(exc: TrtqError) -> str:
    return exc.marked(f"{exc.message}: {exc.reason}" if exc.reason else exc.message)


def open_meter(device: str, gpu: Gpu | None, why_no_gpu: str) -> Meter:
    """Return the meter of a device: NVML for a GPU, the rails of a Jetson, RAPL for a CPU.

    Args:
        device: ``cpu`` or ``cuda:N``.
        gpu: through NVML; None where there is none.
        why_no_gpu: for the error.

    Raises:
        MeterError: there is none; the error says why.
    """
    if is_jetson():
        return JetsonRails()
    if device == "cpu":
        return Rapl()
    if gpu is None:
        raise MeterError("Cannot meter this GPU", why_no_gpu)
    return gpu.meter()


def _save(path: Path, ns: npt.NDArray[np.int64]) -> None:
    with path.open("wb") as handle:
        np.save(handle, ns, allow_pickle=False)
