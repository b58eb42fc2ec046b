"""``trtq bench``: every figure of every file and batch, with the machine it was taken on and the reasons not to use it."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trtq.artifact import SCHEMA, ensure_writable_dir, environment, sha256_file, write_atomic, write_json
from trtq.bench.card import Watch, open_gpu, take_card
from trtq.bench.clocks import locked_clocks
from trtq.bench.energy import measure_energy
from trtq.bench.history import remember
from trtq.bench.latency import cold, doubts, measure_latency, paced, summarize
from trtq.bench.layers import profile_layers
from trtq.bench.meters.jetson import JetsonRails, is_jetson
from trtq.bench.meters.nvml import Gpu
from trtq.bench.meters.protocol import Meter
from trtq.bench.meters.rapl import Rapl
from trtq.bench.opinion import second_opinion
from trtq.bench.record import BenchRecord, BenchRow
from trtq.bench.sampling import Samples, StopRule, Warmup
from trtq.bench.startup import measure_load, measure_memory
from trtq.bench.throughput import MLPERF_SECONDS, measure_throughput
from trtq.bench.verdict import find_baseline, is_quantized, judge_files
from trtq.bench.workload import Workload, is_engine, open_workload, parse_device
from trtq.errors import BenchError, TrtqError, UsageError
from trtq.progress import Progress, Silent
from trtq.recipe import BenchSpec, option_words

RECORD = "bench.json"
PACED_SAMPLES = 100
VERDICT_ROUNDS = 40  # half a minute; trtq compare takes more


def bench(spec: BenchSpec, progress: Progress | None = None) -> BenchRecord:
    """Measure.

    A request that fails or Ctrl-C ends a row early: what was measured until then is kept and marked as not valid.

    Raises:
        UsageError: unknown device, or nothing to measure.
        BenchError: a file cannot be timed.
        EngineError, ExportError: a file cannot be loaded.
    """
    told, began = progress or Silent(), time.perf_counter()
    if not spec.file:
        raise UsageError("trtq bench needs a file", mend="See trtq bench --help")
    parse_device(spec.device)
    out = ensure_writable_dir(Path(spec.out)) if spec.out else None
    paths = [Path(f) for f in spec.file]
    device = "cuda:0" if spec.device == "cpu" and any(is_engine(p) for p in paths) else spec.device
    gpu, why_no_gpu = open_gpu(device)
    card = take_card(device, gpu=gpu)
    notes = [] if gpu is not None or device == "cpu" else [f"clocks, power and throttling are not watched: {why_no_gpu}"]
    rows, verdicts = [], []
    with _clocks(spec, gpu, card):
        for path in paths:
            for batch in spec.batch:
                row = _Row(spec, path, batch, device, gpu, why_no_gpu, out, told).measure()
                rows.append(row)
                if any("KeyboardInterrupt" in r for r in row.reasons):
                    break
        if spec.verdict and spec.mode == "latency" and not any("KeyboardInterrupt" in r for row in rows for r in row.reasons):
            for path in paths:
                if not is_quantized(path):
                    continue
                baseline, why = find_baseline(path, spec.baseline)
                if baseline is None:
                    notes.append(f"no verdict on {path.name}: {why}")
                    continue
                told.begin(f"{path.name} and {baseline.name} take turns", 0)
                verdicts.append(
                    judge_files(baseline, path, device=device, batch=spec.batch[0], trust=spec.trust, gpu=gpu, max_rounds=VERDICT_ROUNDS)
                )
    command = shlex.join(["trtq", "bench", *spec.file, *_words(spec)])
    record = BenchRecord(
        schema=SCHEMA, verb="bench", spec=msgspec.to_builtins(spec), command=command, rows=rows, verdicts=verdicts, card=card,
        valid=all(r.valid for r in rows), notes=notes, seconds=round(time.perf_counter() - began, 3), environment=environment(),
    )  # fmt: skip
    if out is not None:
        write_json(out / RECORD, record)
    try:
        remember(record)
    except TrtqError as exc:
        told.note(f"not in the history: {exc}")
    for line in notes:
        told.note(line)
    return record


def _words(spec: BenchSpec) -> list[str]:
    """Return the options that differ from their defaults."""
    defaults = {f.name: f.default for f in msgspec.structs.fields(BenchSpec)}
    plain = msgspec.to_builtins(spec)
    return [
        w for name, value in plain.items() if name != "file" and getattr(spec, name) != defaults[name] for w in option_words(name, value)
    ]  # fmt: skip


@contextlib.contextmanager
def _clocks(spec: BenchSpec, gpu: Gpu | None, card: dict[str, Any]) -> Iterator[None]:
    if not spec.lock_clocks:
        yield
        return
    if gpu is None:
        card["missing"]["locked_clocks"] = "there is no GPU whose clocks could be held"
        yield
        return
    with locked_clocks(gpu) as said:
        card["gpu"]["locked_clocks"] = said
        card["missing"].pop("locked_clocks", None)
        yield


class _Row:
    """One file with one batch."""

    def __init__(
        self, spec: BenchSpec, path: Path, batch: int, device: str, gpu: Gpu | None, why_no_gpu: str, out: Path | None, told: Progress
    ) -> None:
        self.spec, self.path, self.batch, self.device, self.gpu, self.why_no_gpu = spec, path, batch, device, gpu, why_no_gpu
        self.out, self.told = out, told
        self.reasons: list[str] = []
        self.notes: list[str] = []
        self.unavailable: dict[str, str] = {}
        self.found: dict[str, Any] = {}
        self.rule = StopRule(
            seconds=MLPERF_SECONDS if spec.mlperf_like else spec.duration, samples=spec.min_samples,
            limit_s=max(spec.max_duration, MLPERF_SECONDS if spec.mlperf_like else 0.0, spec.duration),
        )  # fmt: skip

    def measure(self) -> BenchRow:
        """Load the file and take every figure that was asked for."""
        spec = self.spec
        workload = open_workload(self.path, device=self.device, batch=self.batch, graph=spec.cuda_graph, trust=spec.trust)
        self.told.begin(f"{self.path.name}, batch {self.batch}: {spec.mode}", 0)
        watch = Watch(self.device, self.gpu)
        warmup = self._mode(workload, watch)
        self.reasons += watch.reasons()
        if "KeyboardInterrupt" not in str(self.reasons):
            self._more(workload)
        row = BenchRow(
            file=str(self.path), file_sha256=sha256_file(self.path), file_bytes=self.path.stat().st_size,
            kind="engine" if is_engine(self.path) else "onnx", device=workload.label, mode=spec.mode, batch=self.batch,
            input_shape=workload.shape, unavailable=self.unavailable, warmup_calls=warmup, settings=workload.settings,
            state=watch.summary(), valid=not self.reasons, reasons=self.reasons, notes=self.notes, **self.found,
        )  # fmt: skip
        return row

    def _mode(self, workload: Workload, watch: Watch) -> int:
        """Take the figures of the mode; return the requests of the warm-up."""
        spec = self.spec
        if spec.mode == "throughput":
            made = measure_throughput(
                workload, scenario=spec.scenario, streams=spec.streams, seconds=self.rule.seconds, bound_ms=spec.latency_bound
            )
            self.found["throughput"] = made
            if made.met is False:
                self.reasons.append(f"no rate that was tried keeps the 99th percentile under {spec.latency_bound:g} ms")
            watch.look()
            return 0
        if spec.mode == "latency":
            samples, warmup = measure_latency(workload, self.rule, watch)
            if not workload.apart:
                self.unavailable |= dict.fromkeys(("gpu", "enqueue"), workload.why_whole)
        else:
            few = StopRule(seconds=self.rule.seconds, samples=min(self.rule.samples, PACED_SAMPLES), limit_s=self.rule.limit_s)
            if spec.mode == "paced":
                taken, warmup, late = paced(workload, spec.rate, few)
                self.notes.append(f"{spec.rate:g} requests a second")
                if late > 0.01:
                    self.reasons.append(f"{late:.0%} of the requests were due before the one before them had ended: --rate is too high")
            else:
                taken, warmup, emptied = cold(workload, few)
                self.notes.append(f"emptied before each request: {emptied}")
            samples = {"e2e": taken}
            watch.look()
        self._keep(samples, warmup)
        for i in range(1, spec.repeat):
            self.told.begin(f"{self.path.name}: repeat {i + 1} of {spec.repeat}", 0)
            again = open_workload(self.path, device=self.device, batch=self.batch, graph=spec.cuda_graph, trust=spec.trust)
            more, _ = measure_latency(again, self.rule, watch)
            self.found.setdefault("repeats", [self.found["e2e"].median.value]).append(float(np.median(more["e2e"].ms)))
        return warmup.calls

    def _keep(self, samples: dict[str, Samples], warmup: Warmup) -> None:
        """Summarize the samples, write them, and judge them."""
        percentiles = [p / 100.0 for p in self.spec.percentiles]
        for kind, taken in samples.items():
            if not len(taken.ns):
                self.unavailable[kind] = f"a request failed {taken.failed}"
                self.reasons.append(self.unavailable[kind])
                continue
            timing = summarize(kind, taken, percentiles)
            if self.out is not None:
                name = f"{self.path.stem}.b{self.batch}.{self.spec.mode}.{kind}.npy"
                write_atomic(self.out / name, lambda tmp, ns=taken.ns: _save(tmp, ns))  # type: ignore[misc]
                timing = msgspec.structs.replace(timing, file=name)
            self.found[kind] = timing
            self.reasons += [d if kind == "e2e" else f"{kind}: {d}" for d in doubts(timing, warmup, taken)]
        gpu, enqueue = self.found.get("gpu"), self.found.get("enqueue")
        if gpu is not None and enqueue is not None and enqueue.median.value > 0.8 * gpu.median.value:
            self.notes.append(
                "enqueue-bound: the host takes over 80 % of the GPU's time to launch it; a CUDA graph or a larger batch helps"
            )

    def _more(self, workload: Workload) -> None:
        spec = self.spec
        wanted: list[tuple[bool, str, Callable[[], Any]]] = [
            (spec.energy, "energy", lambda: self._energy(workload)),
            (spec.load, "load", self._load),
            (spec.memory, "memory", lambda: measure_memory(self.path, device=self.device, batch=self.batch)),
            (spec.profile, "layers", lambda: self._layers(workload)),
            (spec.trtexec, "trtexec", self._trtexec),
        ]
        for asked, name, take in wanted:
            if not asked:
                continue
            self.told.begin(f"{self.path.name}: {name}", 0)
            try:
                self.found[name] = take()
            except TrtqError as exc:
                self.unavailable[name] = f"{exc.what}: {exc.why}" if exc.why else exc.what

    def _energy(self, workload: Workload) -> Any:
        spec, cooldown = self.spec, 5.0 if self.device != "cpu" else 1.0
        made = measure_energy(
            workload.call, self.batch, open_meter(self.device, self.gpu, self.why_no_gpu), window_s=spec.energy_window,
            repeats=spec.energy_repeats, cooldown_s=cooldown, told=self.told.status,
        )  # fmt: skip
        self.reasons += [f"energy: {r}" for r in made.reasons]
        return made

    def _load(self) -> Any:
        found = [measure_load(self.path, device=self.device, batch=self.batch)]
        try:
            found.append(measure_load(self.path, device=self.device, batch=self.batch, cache="cold"))
        except BenchError as exc:
            self.unavailable["cold start"] = f"{exc.what}: {exc.why}"
        return found

    def _layers(self, workload: Workload) -> Any:
        rows, why = profile_layers(workload, self.path)
        if why:
            self.unavailable["predicted layer times"] = why
        return rows

    def _trtexec(self) -> Any:
        if not is_engine(self.path):
            raise BenchError("No second opinion", "trtexec reads engines, this is an ONNX file")
        return second_opinion(self.path, self.found.get("gpu"), graph=self.spec.cuda_graph)


def open_meter(device: str, gpu: Gpu | None, why_no_gpu: str) -> Meter:
    """Return the meter of a device: NVML for a GPU, the rails of a Jetson, RAPL for a CPU.

    Raises:
        MeterError: there is none, and why.
    """
    from trtq.errors import MeterError

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
