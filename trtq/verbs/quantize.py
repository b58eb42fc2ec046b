"""``trtq quantize``: model and images in, Q/DQ ONNX, encodings and a record out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import onnx
import torch
from torch import fx

from trtq.artifact import SCHEMA, digest_of, ensure_writable_dir, environment, locked, package_version, sha256_file, write_json
from trtq.data.metrics import ratio_db
from trtq.data.preprocess import batches, resolve_preprocess
from trtq.data.source import Source, describe, open_source
from trtq.errors import CalibrationError
from trtq.export.onnx_file import export_onnx, save_onnx, set_metadata_
from trtq.export.parity import USUAL_MARGIN_DB, QuantizerStats, check_parity, require_parity
from trtq.graph.capture import CapturedGraph, capture
from trtq.graph.normalize import get_constant
from trtq.methods.base import Workbench
from trtq.methods.registry import choose, require_fit
from trtq.models.load import load_model
from trtq.quant.cache import CACHE_VERSION, CacheKey, CalibrationCache
from trtq.quant.calibrate import ActivationStats, make_encodings, summarize
from trtq.quant.digest import structure_digest, weights_digest
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import along_axis, fake_quantize
from trtq.quant.observe import observe
from trtq.quant.placement import Placement, Quantizer, place
from trtq.quant.simulate import insert_fake_quantize, shared_names
from trtq.recipe import QuantizeSpec
from trtq.verbs.progress import Progress, Silent
from trtq.verbs.records import Clock, FileRecord, FloatRecord, MethodRecord, QuantizeRecord, QuantizerRecord
from trtq.version import __version__

FP32, QDQ, ENCODINGS, RECORD = "model.fp32.onnx", "model.qdq.onnx", "encodings.safetensors", "quantize.json"
STAGING = ".trtq-new"
FEW_IMAGES = 32
MAX_FOLD_DIFF = 1e-3


def quantize(spec: QuantizeSpec, progress: Progress | None = None) -> QuantizeRecord:
    """Quantize a model and write ``OUT/model.fp32.onnx``, ``model.qdq.onnx``, ``encodings.safetensors``, ``quantize.json``.

    The record is written last: a folder with quantize.json holds a whole, consistent set of files.

    Raises:
        TrtqError: any of its branches; nothing half-written stays behind.
    """
    job = _Job(spec, progress or Silent())
    with locked(job.out / ".trtq.lock", waiting=job.progress.note):
        for left in (*job.out.glob(".*.tmp"), *(job.out / STAGING).glob("*")):
            left.unlink()  # of a run that was killed
        captured, placement = job.capture()
        fp32 = job.export(captured.module, captured, precision="fp32")  # before any method moves a weight
        bench = job.workbench(captured, placement)
        job.apply("before", bench)
        stats = job.calibrate(captured, placement)
        bench.encodings = encodings = make_encodings(captured.module, placement, stats, job.origin)
        job.clock.lap("encode")
        job.apply("after", bench)
        encodings.constants = {**bench.folded, **encodings.constants}
        simulated = insert_fake_quantize(captured.module, placement, encodings)
        qdq = job.export(simulated, captured, precision="int8", encodings_sha256=encodings.digest())
        return job.verify_and_write(captured, simulated, placement, encodings, stats, qdq, fp32)


class _Job:
    """One run of the verb: what the user gave, what was read, what must go into the record."""

    def __init__(self, spec: QuantizeSpec, progress: Progress) -> None:
        self.spec, self.progress = spec, progress
        self.clock, self.notes = Clock(), list[str]()
        self.out = ensure_writable_dir(Path(spec.out))
        self.source = open_source(spec.data, Path(spec.class_index) if spec.class_index else None)
        self.loaded = load_model(
            spec.model, args=spec.model_arg, checkpoint=Path(spec.checkpoint) if spec.checkpoint else None,
            match=spec.checkpoint_match, seed=spec.seed,
        )  # fmt: skip
        if self.loaded.weights.startswith("random"):
            self.note(f"the weights are {self.loaded.weights}: speed and size mean something, accuracy does not (--checkpoint)")
        self.preprocess, said = resolve_preprocess(
            input_size=spec.input_size, mean=spec.mean, std=spec.std, preset=spec.preset, resize=spec.resize, crop=spec.crop,
            interpolation=spec.interpolation, hints=self.loaded.input_hints,
        )  # fmt: skip
        for line in said:
            self.note(line)
        self.indices = _choose_images(self.source, spec, self.note)
        self.methods, self.method_records = choose(spec.method, spec.method_arg), list[MethodRecord]()
        self.origin: dict[str, str] = {}
        self.cache_note = ""
        self.clock.lap("load")

    def note(self, text: str) -> None:
        """Tell the user and keep the line for the record."""
        self.notes.append(text)
        self.progress.note(text)

    def capture(self) -> tuple[CapturedGraph, Placement]:
        """Return the graph and its quantizers."""
        captured = capture(self.loaded.module, self.preprocess.input_size)
        for line in captured.notes:
            self.note(line)
        weight_bits, input_bits = (int(v) for v in self.spec.bits[1:].split("a"))
        placement = place(
            captured.module,
            high_precision=self.spec.high_precision,
            weight_bits=weight_bits,
            input_bits=input_bits,
            attention=self.spec.attention,
        )
        if not placement.quantizers:
            raise CalibrationError(f"There is nothing to quantize in {self.spec.model}", "its graph has no convolution, linear or matmul")
        self.weights_sha256 = weights_digest(captured.module)  # the model's own, before any method
        self.example = captured.example
        if self.methods:
            with torch.no_grad():
                self.reference = captured.module(captured.example)
        self.clock.lap("capture")
        return captured, placement

    def workbench(self, captured: CapturedGraph, placement: Placement) -> Workbench:
        """Return what methods work on; a method that does not fit the model is refused here, before calibration."""
        size = self.spec.batch_size if captured.dynamic_batch else 1
        bench = Workbench(
            graph=captured.module, placement=placement, dynamic_batch=captured.dynamic_batch, note=self.note,
            begin=self.progress.begin, advance=self.progress.advance,
            images=lambda limit: batches(self.source, self.indices[:limit], self.preprocess, size),
        )  # fmt: skip
        for method, _ in self.methods:
            require_fit(method, bench)
        return bench

    def apply(self, phase: str, bench: Workbench) -> None:
        """Run the methods that act in this phase, in the registry's order."""
        for method, arguments in self.methods:
            if method.acts == phase:
                done = method.run(bench, arguments)
                if phase == "before":
                    self._require_same_function(bench, method.name)
                self.method_records.append(
                    MethodRecord(name=method.name, label=method.label, source=method.source, arguments=arguments, did=done)
                )
                self.clock.lap(method.name)

    def _require_same_function(self, bench: Workbench, method: str) -> None:
        """Hold a graph whose constants a method moved against the model: its function must have stayed."""
        with torch.no_grad():
            wanted, got = self.reference, bench.graph(self.example)
        off = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        if not off <= MAX_FOLD_DIFF:
            raise CalibrationError(
                f"The method {method} changed what the model computes",
                f"outputs moved by {off:.2e} of their largest value, at most {MAX_FOLD_DIFF:.0e} is rounding",
                f"Leave --method {method} out, and report this: it is an error of trtq",
            )

    def calibrate(self, captured: CapturedGraph, placement: Placement) -> dict[str, ActivationStats]:
        """Return the statistics of every observed activation, from the cache when it has them."""
        spec = self.spec
        key = CacheKey(
            {
                "weights": weights_digest(captured.module),
                "graph": digest_of([structure_digest(captured.module), [[q.name, q.format.bits] for q in placement.quantizers]]),
                "images": self.source.digest(self.indices),
                "preprocessing": digest_of(msgspec.to_builtins(self.preprocess)),
                "calibrator": f"percentile {spec.percentile!r}" if spec.calibrator == "percentile" else spec.calibrator,
                "version": f"trtq {__version__}, cache {CACHE_VERSION}, torch {package_version('torch')}",
            }
        )
        self.origin = {
            "model": self.loaded.name, "weights_sha256": self.weights_sha256, "graph_sha256": key.parts["graph"],
            "images_sha256": key.parts["images"], "calibrator": key.parts["calibrator"], "placement": "tensorrt", "bits": spec.bits,
            "methods": " ".join(m.name for m, _ in self.methods),
        }  # fmt: skip
        cache = CalibrationCache(ensure_writable_dir(cache_folder(spec), option="--calib-cache"))
        with cache.lock(key, waiting=self.progress.note):
            stats, self.cache_note = cache.load(key)
            if stats is None:
                stats = self._observe(captured, placement)
                cache.save(key, stats)
        self.progress.note(f"calibration cache {self.cache_note}")
        self.clock.lap("calibrate")
        return stats

    def _observe(self, captured: CapturedGraph, placement: Placement) -> dict[str, ActivationStats]:
        spec = self.spec
        self.progress.begin(f"Calibrating ({spec.calibrator})", len(self.indices))
        images = batches(self.source, self.indices, self.preprocess, spec.batch_size if captured.dynamic_batch else 1)
        seen = observe(captured.module, placement, images, mode=spec.calibrator, progress=self.progress.advance)
        wanted = {q.stats_key: q for q in placement.quantizers if not q.is_weight}
        return {k: summarize(seen[q.source.name], spec.calibrator, spec.percentile, q.format.bits) for k, q in wanted.items()}

    def export(self, graph: fx.GraphModule, captured: CapturedGraph, **metadata: str) -> onnx.ModelProto:
        """Return ``graph`` as ONNX, with the metadata later verbs read."""
        model = export_onnx(graph, captured.example, dynamic_batch=captured.dynamic_batch, opset=self.spec.opset, note=self.note)
        origin = {"preprocess": self.preprocess, "model": self.loaded.name, "weights": self.loaded.weights}
        set_metadata_(model, {**origin, **metadata})
        self.clock.lap("export")
        return model

    def verify_and_write(
        self,
        captured: CapturedGraph,
        simulated: fx.GraphModule,
        placement: Placement,
        encodings: Encodings,
        stats: Mapping[str, ActivationStats],
        qdq: onnx.ModelProto,
        fp32: onnx.ModelProto,
    ) -> QuantizeRecord:
        """Hold the files against the simulation, then write them, the record last."""
        spec = self.spec
        some = self.indices[: spec.parity_images]
        self.progress.begin("Comparing torch and ONNX Runtime", len(some))
        images = list(batches(self.source, some, self.preprocess, spec.batch_size if captured.dynamic_batch else 1))
        parity, measured = check_parity(captured.module, simulated, qdq, images, progress=self.progress.advance)
        require_parity(parity)
        if parity.margin_db is not None and parity.margin_db < USUAL_MARGIN_DB:
            self.note(
                f"torch and ONNX Runtime drift apart to {parity.margin_db:.1f} dB below the quantization error (usual: "
                f"{USUAL_MARGIN_DB:g} dB or more): step by step their codes are equal but for ties, which multiply in a deep model"
            )
        self.clock.lap("parity")
        staging = ensure_writable_dir(self.out / STAGING)
        files = {
            FP32: save_onnx(fp32, staging / FP32),
            QDQ: save_onnx(qdq, staging / QDQ),
            ENCODINGS: encodings.save(staging / ENCODINGS),
        }
        self.clock.lap("write")
        record = QuantizeRecord(
            schema=SCHEMA,
            verb="quantize",
            spec=msgspec.to_builtins(spec),
            model={
                "name": self.loaded.name, "weights": self.loaded.weights, **self.origin,
                "parameters": sum(p.numel() for p in self.loaded.module.parameters()),
                "weight_values": {q.layer: _values(q) for q in placement.quantizers if q.role == "weight"},
                "dynamic_batch": captured.dynamic_batch, "capture_max_rel_diff": captured.max_rel_diff,
                "normalisation": captured.passes,
            },
            data={
                **describe(self.source),
                "calibration_ids": [self.source.ids[i] for i in self.indices],
                "calibration_sha256": [self.source.content(i) for i in self.indices],
            },
            preprocess=self.preprocess,
            calibration={
                "calibrator": self.origin["calibrator"], "images": len(self.indices), "cache": self.cache_note,
                "weights": "per output channel, scale searched for the least output error",
            },
            methods=self.method_records,
            quantizers=_quantizer_records(captured.module, placement, encodings, measured),
            left_in_float=_float_records(placement, stats),
            parity=parity,
            files={n: FileRecord(sha256=sha256_file(p), bytes=p.stat().st_size) for n, p in files.items()},
            notes=self.notes,
            seconds=self.clock.seconds,
            environment=environment(),
        )  # fmt: skip
        write_json(staging / RECORD, record)
        # Everything is on the disk: now the old record goes, the files move, the new record comes last and vouches for them.
        (self.out / RECORD).unlink(missing_ok=True)
        for name in (*files, RECORD):
            (staging / name).replace(self.out / name)
        staging.rmdir()
        return record


def _values(quantizer: Quantizer) -> int:
    value = quantizer.source.meta.get("val")
    return int(value.numel()) if isinstance(value, torch.Tensor) else 0


def cache_folder(spec: QuantizeSpec) -> Path:
    """Return the folder of the calibration cache: the spec's, ``$TRTQ_CALIB_CACHE``, or ``./calib_cache``."""
    return Path(spec.calib_cache or os.environ.get("TRTQ_CALIB_CACHE") or "calib_cache")


def _choose_images(source: Source, spec: QuantizeSpec, note: Callable[[str], None]) -> list[int]:
    indices = source.sample(spec.calib_images, spec.seed)
    if source.ignored:
        note(f"{len(source.ignored)} files in {source.name} are not images and were ignored, such as {source.ignored[0]}")
    if len(indices) < spec.calib_images:
        note(f"{source.name} has {len(indices)} images, {spec.calib_images} were asked for: all are used")
    if len(indices) < FEW_IMAGES:
        note(f"{len(indices)} calibration images are few, ranges may be too narrow: 256 or more are usual")
    return indices


def _weight_stats(graph: fx.GraphModule, quantizer: Quantizer, encodings: Encodings) -> QuantizerStats:
    """Return what quantization did to a weight: what is stored against what it was, methods' rounding included."""
    weight, fmt, scale = get_constant(graph, quantizer.source), quantizer.format, encodings.scale(quantizer.name)
    assert weight is not None
    stored = encodings.constant(graph, quantizer.source)
    values = fake_quantize(stored, scale, None, fmt.axis, fmt.qmin, fmt.qmax, quantizer.name)
    sqnr = ratio_db(float(weight.square().sum()), float((weight - values).square().sum()))
    step = along_axis(scale, weight.ndim, fmt.axis)
    outside = (weight > (fmt.qmax + 0.5) * step) | (weight < (fmt.qmin - 0.5) * step)
    return QuantizerStats(
        sqnr_db=round(sqnr, 3) if math.isfinite(sqnr) else None, saturated=float(outside.float().mean()),
        low=float(weight.min()), high=float(weight.max()),
    )  # fmt: skip


def _quantizer_records(
    graph: fx.GraphModule, placement: Placement, encodings: Encodings, measured: Mapping[str, QuantizerStats]
) -> list[QuantizerRecord]:
    shared = shared_names(placement, encodings)
    records = []
    for q in placement.active:
        amax = encodings.amax[q.name]
        stats = _weight_stats(graph, q, encodings) if q.is_weight else measured[shared[q.name]]
        records.append(
            QuantizerRecord(
                name=q.name, layer=q.layer, role=q.role, format=q.format.label, granularity=q.format.granularity,
                amax=float(amax.max()), amax_min=float(amax.min()), channels=amax.numel() if amax.ndim else None,
                sqnr_db=stats.sqnr_db, saturated=stats.saturated, low=stats.low, high=stats.high,
                histogram=stats.histogram, histogram_limit=stats.histogram_limit,
            )
        )  # fmt: skip
    return records


def _float_records(placement: Placement, stats: Mapping[str, ActivationStats]) -> list[FloatRecord]:
    records = []
    for q in placement.quantizers:
        if q.float_reason is not None:
            seen = None if q.is_weight else stats[q.stats_key]
            records.append(
                FloatRecord(
                    name=q.name, layer=q.layer, role=q.role, reason=q.float_reason,
                    low=seen.low if seen else None, high=seen.high if seen else None,
                )
            )  # fmt: skip
    return records
