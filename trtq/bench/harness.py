"""``trtq bench``: measure all figures of every file and batch.

Each record names the machine and the reasons why a figure should not be used.
"""

from __future__ import annotations

import contextlib
import itertools
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtq.artifact import (
    ensure_writable_dir,
    environment,
    header,
    sha256_file,
    write_atomic,
    write_json,
)
from trtq.bench.clocks import locked_clocks
from trtq.bench.energy import measure_energy
from trtq.bench.history import remember
from trtq.bench.int8_verdict import find_baseline, is_quantized, judge_files
from trtq.bench.latency import cold, doubts, measure_latency, paced, summarize
from trtq.bench.layers import profile_layers
from trtq.bench.meters.jetson import JetsonRails, is_jetson
from trtq.bench.meters.nvml import Gpu, NvmlPower
from trtq.bench.meters.protocol import Meter
from trtq.bench.meters.rapl import Rapl
from trtq.bench.record import BenchRecord, BenchRow, Verdict
from trtq.bench.sampling import Samples, StopRule, Warmup, loop_overhead, said
from trtq.bench.startup import measure_load, measure_memory
from trtq.bench.system_info import Watch, open_gpu, take_card
from trtq.bench.throughput import MLPERF_SECONDS, measure_throughput, throughput_doubts
from trtq.bench.trtexec_bench import second_opinion
from trtq.bench.workload import EngineWorkload, Workload, device_for, open_workload, parse_device
from trtq.engine.open_engine import is_engine
from trtq.errors import BenchError, MeterError, TrtqError, UsageError
from trtq.export.onnx_file import require_onnx
from trtq.files import BENCH_JSON
from trtq.progress import Progress, Silent
from trtq.specs import BenchSpec, changed_words

PACED_SAMPLES = 100
VERDICT_LOADS = 16  # half a minute; trtq compare takes more


def bench(spec: BenchSpec, progress: Progress | None = None) -> BenchRecord:
    """Measure files.

    A request that fails ends its row, Ctrl-C ends everything: what was measured until then is kept,
    written and marked as not valid.

    Raises:
        UsageError: unknown device, nothing to measure, or a batch that a file does not take.
        BenchError: a file cannot be timed.
        EngineError, ExportError: a file cannot be loaded.
    """
    told, began = progress or Silent(), time.perf_counter()
    if not spec.file:
        raise UsageError("trtq bench needs a file", hint="See trtq bench --help")
    parse_device(spec.device)
    paths = [Path(f) for f in spec.file]
    if spec.baseline is not None and not Path(spec.baseline).is_file():
        raise BenchError(f"Cannot read the baseline {spec.baseline}", "there is no such file")
    for path in paths:  # everything that can be refused is refused before anything is measured
        for batch in spec.batch:
            open_workload(path, device=spec.device, batch=batch, graph=False, trust=spec.trust)
    out = ensure_writable_dir(Path(spec.out)) if spec.out else None
    device = device_for(spec.device, *paths)
    gpu, why_no_gpu = open_gpu(device)
    card = take_card(device, gpu=gpu)
    notes = (
        []
        if gpu is not None or device == "cpu"
        else [f"clocks, power and throttling are not watched: {why_no_gpu}"]
    )
    rows: list[BenchRow] = []
    verdicts: list[Verdict] = []
    with _clocks(spec, gpu, card):
        stopped = False
        for path, batch in itertools.product(paths, spec.batch):
            if not stopped:
                row = _Row(
                    spec, path, batch, device_for(spec.device, path), gpu, why_no_gpu, out, told
                )
                rows.append(row.measure())
                stopped = row.interrupted
        for path in paths if spec.verdict and spec.mode == "latency" and not stopped else ():
            try:
                verdicts += _verdict(spec, path, gpu, notes, told)
            except (TrtqError, KeyboardInterrupt) as exc:
                notes.append(f"no verdict on {path.name}: {said(exc)}")
    command = shlex.join(["trtq", "bench", *spec.file, *changed_words(spec, "file")])
    record = BenchRecord(
        **header("bench", spec),
        command=command,
        rows=rows,
        verdicts=verdicts,
        card=card,
        valid=all(r.valid for r in rows) and all(v.valid for v in verdicts),
        notes=notes,
        seconds=round(time.perf_counter() - began, 3),
        environment=environment(),
    )
    if out is not None:
        write_json(out / BENCH_JSON, record)
    try:
        remember(record)
    except TrtqError as exc:
        told.note(f"not in the history: {exc}")
    for line in notes:
        told.note(line)
    return record


def _verdict(
    spec: BenchSpec, path: Path, gpu: Gpu | None, notes: list[str], told: Progress
) -> list[Verdict]:
    """Return the verdict on a quantized file, as a list.

    The list is empty for a float file. Without a baseline it is empty and a note says why.
    """
    if not is_quantized(path):
        return []
    baseline, why = find_baseline(path, spec.baseline)
    if baseline is None:
        notes.append(f"no verdict on {path.name}: {why}")
        return []
    told.begin(f"{path.name} and {baseline.name} take turns", 0)
    return [
        judge_files(
            baseline,
            path,
            device=spec.device,
            batch=spec.batch[0],
            trust=spec.trust,
            graph=spec.cuda_graph,
            gpu=gpu,
            max_groups=VERDICT_LOADS,
        )
    ]


@contextlib.contextmanager
def _clocks(spec: BenchSpec, gpu: Gpu | None, card: dict[str, Any]) -> Iterator[None]:
    if not spec.lock_clocks:
        yield
        return
    if gpu is None:
        card["missing"]["locked_clocks"] = "there is no GPU whose clocks could be held"
        yield
        return
    with locked_clocks(gpu) as came_of_it:
        card["gpu"]["locked_clocks"] = came_of_it
        card["missing"].pop("locked_clocks", None)
        yield


class _Row:
    """One file with one batch."""

    def __init__(
        self,
        spec: BenchSpec,
        path: Path,
        batch: int,
        device: str,
        gpu: Gpu | None,
        why_no_gpu: str,
        out: Path | None,
        told: Progress,
    ) -> None:
        self.spec, self.path, self.batch, self.device, self.why_no_gpu = (
            spec,
            path,
            batch,
            device,
            why_no_gpu,
        )
        self.gpu, self.out, self.told = gpu if device != "cpu" else None, out, told
        self.sha256 = require_onnx(path) if path.suffix == ".onnx" else sha256_file(path)
        self.interrupted = False
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.unavailable: dict[str, str] = {}
        self.found: dict[str, Any] = {}
        self.warmup_calls = 0
        self.rule = StopRule(
            seconds=MLPERF_SECONDS if spec.mlperf_like else spec.duration,
            samples=spec.min_samples,
            limit_s=max(
                spec.max_duration, MLPERF_SECONDS if spec.mlperf_like else 0.0, spec.duration
            ),
        )

    def measure(self) -> BenchRow:
        """Load the file and measure every requested figure."""
        spec = self.spec
        workload = self._open()
        watch = Watch(self.device, self.gpu)
        failed = self._repeats(workload, watch)
        watch.look()
        self.reasons += watch.reasons()
        self.unavailable |= watch.unwatched()
        if not failed:
            self._more(workload)
        return BenchRow(
            file=str(self.path),
            file_sha256=self.sha256,
            file_bytes=self.path.stat().st_size,
            kind="engine" if is_engine(self.path) else "onnx",
            device=workload.label,
            mode=spec.mode,
            batch=self.batch,
            input_shape=workload.shape,
            unavailable=self.unavailable,
            warmup_calls=self.warmup_calls,
            settings={**workload.settings, **self._settings()},
            state={**watch.summary(), "loop_overhead_us": round(loop_overhead(10_000), 3)},
            valid=not self.reasons,
            reasons=self.reasons,
            notes=self.notes,
            **self.found,
        )

    def _open(self) -> Workload:
        return open_workload(
            self.path,
            device=self.device,
            batch=self.batch,
            graph=self.spec.cuda_graph,
            trust=self.spec.trust,
        )

    def _settings(self) -> dict[str, Any]:
        """Return the settings of the mode, which two rows must share to be compared."""
        spec = self.spec
        if spec.mode == "throughput":
            return {
                "scenario": spec.scenario,
                "streams": spec.streams,
                "latency_bound": spec.latency_bound,
            }
        return {"rate": spec.rate} if spec.mode == "paced" else {}

    def _repeats(self, workload: Workload, watch: Watch) -> bool:
        """Measure the mode as often as requested; return whether a request failed.

        Each repeat loads the file again.
        """
        spec, spread = self.spec, list[float]()
        for i in range(spec.repeat):
            self.told.begin(
                f"{self.path.name}, batch {self.batch}: {spec.mode}"
                + (f", {i + 1} of {spec.repeat}" if i else ""),
                0,
            )
            before = len(self.reasons)
            failed, figure = self._mode(workload if i == 0 else self._open(), watch, first=i == 0)
            if i:
                self.reasons[before:] = [f"repeat {i + 1}: {r}" for r in self.reasons[before:]]
            if figure is not None:
                spread.append(figure)
            if failed:
                self.interrupted = "KeyboardInterrupt" in failed
                return True
        if len(spread) > 1:
            self.found["repeats"] = spread
            self.notes.append(
                f"{len(spread)} repeats: {', '.join(f'{v:.4g}' for v in spread)} "
                f"({max(spread) / min(spread) - 1.0:.1%} apart)"
            )
        return False

    def _mode(self, workload: Workload, watch: Watch, *, first: bool) -> tuple[str, float | None]:
        """Measure the mode once; return what failed, and the figure that repeats compare."""
        spec = self.spec
        if spec.mode == "throughput":
            try:
                made = measure_throughput(
                    workload,
                    scenario=spec.scenario,
                    streams=spec.streams,
                    seconds=self.rule.seconds,
                    bound_ms=spec.latency_bound,
                    between=watch.between,
                    counts=spec.mlperf_like,
                )
            except BenchError as exc:
                if first:
                    raise
                self.reasons.append(str(exc))
                return str(exc), None
            if first:
                self.found["throughput"], self.warmup_calls = made, made.warmup_calls
            self.reasons += throughput_doubts(made)
            return made.failed, made.images_per_s
        if spec.mode == "latency":
            samples, warmup = measure_latency(workload, self.rule, watch)
            if not workload.apart:
                self.unavailable |= dict.fromkeys(("gpu", "enqueue"), workload.why_whole)
        else:
            few = StopRule(
                seconds=self.rule.seconds,
                samples=min(self.rule.samples, PACED_SAMPLES),
                limit_s=self.rule.limit_s,
            )
            if spec.mode == "paced":
                taken, warmup, late = paced(workload, spec.rate, few, watch)
                self.notes += [f"{spec.rate:g} requests a second"] if first else []
                if late > 0.01:
                    self.reasons.append(
                        f"{late:.0%} of the requests were due before the one before them had "
                        "ended: --rate is too high"
                    )
            else:
                taken, warmup, emptied = cold(workload, few, watch)
                self.notes += [f"emptied before each request: {emptied}"] if first else []
            samples = {"e2e": taken}
        self._keep(samples, warmup, first=first)
        median = float(np.median(samples["e2e"].ms)) if len(samples["e2e"].ns) else None
        return next((s.failed for s in samples.values() if s.failed), ""), median

    def _keep(self, samples: dict[str, Samples], warmup: Warmup, *, first: bool) -> None:
        """Summarize the samples, write those of the first run, and judge them."""
        percentiles = [p / 100.0 for p in self.spec.percentiles]
        for kind, taken in samples.items():
            if not len(taken.ns):
                self.unavailable[kind] = f"a request failed {taken.failed}"
                self.reasons.append(self.unavailable[kind])
                continue
            timing = summarize(kind, taken, percentiles)
            self.reasons += [
                d if kind == "e2e" else f"{kind}: {d}" for d in doubts(timing, warmup, taken)
            ]
            if not first:
                continue
            self.warmup_calls = warmup.calls
            if self.out is not None:
                name = (
                    f"{self.path.stem}.{self.sha256[:8]}.b{self.batch}.{self.spec.mode}.{kind}.npy"
                )
                write_atomic(self.out / name, lambda tmp, ns=taken.ns: _save(tmp, ns))  # type: ignore[misc]
                timing = msgspec.structs.replace(
                    timing, file=name, file_sha256=sha256_file(self.out / name)
                )
            self.found[kind] = timing
        gpu, enqueue = self.found.get("gpu"), self.found.get("enqueue")
        if (
            first
            and gpu is not None
            and enqueue is not None
            and enqueue.median.value > 0.8 * gpu.median.value
        ):
            self.notes.append(
                "enqueue-bound: the host takes over 80 % of the GPU's time to launch it; a CUDA "
                "graph or a larger batch helps"
            )

    def _more(self, workload: Workload) -> None:
        spec = self.spec
        wanted: list[tuple[bool, str, Callable[[], Any]]] = [
            (spec.energy, "energy", lambda: self._energy(workload)),
            (spec.load, "load", self._load),
            (
                spec.memory,
                "memory",
                lambda: measure_memory(self.path, device=self.device, batch=self.batch),
            ),
            (spec.profile, "layers", lambda: self._layers(workload)),
            (spec.trtexec, "trtexec", lambda: self._trtexec(workload)),
        ]
        for asked, name, take in wanted:
            if not asked or self.interrupted:
                continue
            self.told.begin(f"{self.path.name}: {name}", 0)
            try:
                self.found[name] = take()
            except TrtqError as exc:
                self.unavailable[name] = (
                    f"{exc.message}: {exc.reason}" if exc.reason else exc.message
                )
            except (
                Exception,
                KeyboardInterrupt,
            ) as exc:  # whatever a runtime raises: what was measured before stays
                self.interrupted = isinstance(exc, KeyboardInterrupt)
                self.unavailable[name] = said(exc)
                self.reasons.append(f"{name}: {said(exc)}")

    def _energy(self, workload: Workload) -> Any:
        spec = self.spec
        if spec.mode in ("throughput", "cold"):
            raise MeterError(
                "Energy is not measured in this mode",
                "its load is another one",
                "Use --mode latency or --mode paced",
            )
        meter = open_meter(self.device, self.gpu, self.why_no_gpu)
        watch = Watch(self.device, self.gpu)
        made = measure_energy(
            workload.call,
            self.batch,
            meter,
            window_s=spec.energy_window,
            repeats=spec.energy_repeats,
            cooldown_s=5.0 if self.device != "cpu" else 1.0,
            rate=spec.rate if spec.mode == "paced" else None,
            check=NvmlPower(self.gpu) if self.gpu is not None and meter.counter else None,
            told=self.told.status,
        )
        watch.look()
        reasons = [*made.reasons, *watch.reasons()]
        self.reasons += [f"energy: {r}" for r in reasons]
        return msgspec.structs.replace(
            made, reasons=reasons, valid=not reasons, state=watch.summary()
        )

    def _load(self) -> Any:
        found = [measure_load(self.path, device=self.device, batch=self.batch)]
        try:
            found.append(
                measure_load(self.path, device=self.device, batch=self.batch, cache="cold")
            )
        except BenchError as exc:
            self.unavailable["cold start"] = f"{exc.message}: {exc.reason}"
        return found

    def _layers(self, workload: Workload) -> Any:
        rows, why = profile_layers(workload, self.path)
        if why:
            self.unavailable["predicted layer times"] = why
        return rows

    def _trtexec(self, workload: Workload) -> Any:
        if not isinstance(workload, EngineWorkload):
            raise BenchError("No second opinion", "trtexec reads engines, this is an ONNX file")
        shapes = (
            f"{workload.runner.inputs[0]}:{'x'.join(map(str, workload.shape))}"
            if workload.is_dynamic
            else ""
        )
        return second_opinion(
            self.path, self.found.get("gpu"), shapes=shapes, graph=self.spec.cuda_graph
        )


def open_meter(device: str, gpu: Gpu | None, why_no_gpu: str) -> Meter:
    """Return the meter of a device: NVML for a GPU, the rails of a Jetson, RAPL for a CPU.

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


def _save(path: Path, ns: Any) -> None:
    with path.open("wb") as handle:
        np.save(handle, ns, allow_pickle=False)
