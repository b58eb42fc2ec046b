"""``trtq quantize``: model and images in, Q/DQ ONNX, encodings and a record out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import torch
from torch import fx

from trtq.artifact import (
    FileRecord,
    environment,
    header,
)
from trtq.commands.loading import answer_kind, open_model, open_preprocess
from trtq.commands.ptq_flow import Attempt, Inputs, attempt, check_spec, fitting
from trtq.commands.workspace import Workspace, file_records
from trtq.data.answers import HAVE_PREDICTIONS
from trtq.data.metrics import ratio_db
from trtq.data.source import Source, describe, open_source
from trtq.errors import UsageError
from trtq.export.fp16_ranges import IMAGES, mark_float_nodes_
from trtq.export.kernel_support import where_it_runs
from trtq.export.onnx_file import save_onnx
from trtq.export.parity import (
    FORCED_IMAGES,
    USUAL_MARGIN_DB,
    QuantizerStats,
    require_parity,
    require_same_float,
    require_varying,
)
from trtq.files import ENCODINGS, FP32, MODEL_FILES, QDQ, QUANTIZE_JSON
from trtq.graph.blocks import Family, family_of
from trtq.graph.capture import capture
from trtq.graph.nodes import get_constant
from trtq.methods.presets import CHECK_SQNR_DB, LEAST_SQNR_DB, PRESETS, Preset, add, start
from trtq.progress import Progress, Silent
from trtq.quant.calibrate import ActivationStats
from trtq.quant.encodings import Encodings
from trtq.quant.fake_quantize import fake_quantize, positions
from trtq.quant.placement import Placement, Quantizer
from trtq.quant.simulate import shared_names
from trtq.records.quantize import (
    FloatRecord,
    PresetRecord,
    QuantizeRecord,
    QuantizerRecord,
    TryRecord,
)
from trtq.specs import QuantizeSpec

FEW_IMAGES = 32
COMPARED = {"values": "SQNR and cosine", "indices": "equal integers"}
INT4_BITS = 4


def quantize(spec: QuantizeSpec, progress: Progress | None = None) -> QuantizeRecord:
    """Quantize a model and write its files to ``OUT``.

    The files are ``model.fp32.onnx``, ``model.qdq.onnx``, ``encodings.safetensors`` and
    ``quantize.json``. The record is written last: a folder with quantize.json holds a whole,
    consistent set of files.

    Raises:
        TrtqError: any of its branches; nothing half-written stays behind.
    """
    check_spec(spec)
    job = _Job(spec, progress or Silent())
    with job.work.locked():
        job.work.remove_leftovers(MODEL_FILES)
        inputs = job.capture()
        fp32 = inputs.export(inputs.captured.module, spec, precision="fp32")
        require_same_float(
            inputs.captured.module, fp32, next(inputs.images(FORCED_IMAGES, spec.batch_size))
        )
        done = job.settle(inputs)
        require_parity(done.parity)
        require_varying(done.parity)
        return job.write(inputs, done, fp32)


class _Job:
    """One run of the verb: what the user gave, what was read, what must go into the record."""

    def __init__(self, spec: QuantizeSpec, progress: Progress) -> None:
        self.spec, self.progress = spec, progress
        self.work = Workspace(Path(spec.out), QUANTIZE_JSON, progress)
        self.clock, self.note = self.work.clock, self.work.note
        self.source = open_source(spec.data, spec.class_index, self.note)
        self.loaded = open_model(spec)
        if self.loaded.weights.startswith("random"):
            self.note(
                f"the weights are {self.loaded.weights}: speed and size mean something, "
                "accuracy does not (--checkpoint)"
            )
        self.preprocess, said = open_preprocess(spec, self.loaded)
        self.note(*said)
        self.indices = _choose_images(self.source, spec, self.note)
        self.preset: PresetRecord | None = None
        self.clock.lap("load")

    def capture(self) -> Inputs:
        """Return the captured model and the images, for the attempts."""
        captured = capture(self.loaded.module, self.preprocess.input_size)
        self.note(*captured.notes)
        self.clock.lap("capture")
        return Inputs(
            loaded=self.loaded,
            captured=captured,
            source=self.source,
            indices=self.indices,
            preprocess=self.preprocess,
            progress=self.progress,
            clock=self.clock,
            note=self.note,
            answer=answer_kind(self.loaded, captured, self.source),
        )

    def settle(self, inputs: Inputs) -> Attempt:
        """Attempt what was asked, with the family's preset.

        When the quick check fails, attempt the preset's fallbacks and take the best.
        """
        spec = self.spec
        if inputs.answer not in HAVE_PREDICTIONS:
            self.note(
                "the output is not known to be scores of classes: it is compared by "
                f"{COMPARED[inputs.answer]}"
            )
        if spec.preset_quant == "none":
            return attempt(inputs, spec)
        found, counted = family_of(inputs.captured.module)
        family: Family = found if spec.preset_quant == "auto" else spec.preset_quant
        preset = PRESETS[family]
        current = fitting(inputs, start(spec, family), spec.method)
        self.progress.note(
            f"preset {family} ({counted if spec.preset_quant == 'auto' else 'asked for'}): "
            f"{', '.join(current.method) or 'no method'}"
        )
        best = attempt(inputs, current)
        tried = [
            _tried("as asked" if current == spec else f"with {', '.join(current.method)}", best)
        ]
        if not self.loaded.weights.startswith("random"):
            best, more = self._fall_back(inputs, preset, best)
            tried += more
        passed = _passes(best, spec.min_agreement)
        self.preset = PresetRecord(
            family=family,
            reason=counted if spec.preset_quant == "auto" else "asked for",
            methods=list(best.spec.method),
            check=f"{_check_words(best, spec.min_agreement)} on {best.parity.images} calibration "
            "images",
            passed=passed,
            tried=tried,
            taken=next(t.step for t in reversed(tried) if t == _tried(t.step, best)),
            high_precision=list(best.spec.high_precision),
            attention=best.spec.attention,
        )
        return best

    def _fall_back(
        self, inputs: Inputs, preset: Preset, first: Attempt
    ) -> tuple[Attempt, list[TryRecord]]:
        """Return the first attempt that passes the quick check, else the best one.

        The second value is what was tried after the first attempt.
        """
        floor, best, last, tried = self.spec.min_agreement, first, first, list[TryRecord]()
        for step in preset.fallback:
            if _passes(best, floor):
                break
            sqnr = {k: v.sqnr_db for k, v in last.measured.items() if v.sqnr_db is not None}
            following = fitting(
                inputs, add(last.spec, step, last.placement, sqnr), self.spec.method
            )
            if following == last.spec:
                continue  # the step changes nothing on this model
            if self.spec.allocation and following.high_precision != last.spec.high_precision:
                self.note(
                    f"the fallback {step.name} leaves the allocation: its budgets no longer hold"
                )
            self.note(
                f"the quick check asks for {_check_words(best, floor)}, found "
                f"{best.parity.answer.words}: trying {step.name}"
            )
            try:
                last = attempt(inputs, following)
            except (
                UsageError
            ) as exc:  # a method that was asked for has nothing left to do once this step is taken
                self.note(f"{step.name} is left out: {exc}")
                continue
            tried.append(_tried(step.name, last))
            if _rank(last) >= _rank(best):
                best = last
        if not _passes(best, floor):
            self.note(
                f"the quick check failed after every fallback: {best.parity.answer.words}; it "
                f"asks for {_check_words(best, floor)}"
            )
        return best, tried

    def write(self, inputs: Inputs, done: Attempt, fp32: onnx.ModelProto) -> QuantizeRecord:
        """Write the files of an attempt that passed the parity gate, the record last."""
        parity = done.parity
        if parity.margin_db is not None and parity.margin_db < USUAL_MARGIN_DB:
            self.note(
                f"torch and ONNX Runtime drift apart to {parity.margin_db:.1f} dB below the "
                f"quantization error (usual: {USUAL_MARGIN_DB:g} dB or more): step by step their "
                "codes are equal but for ties, which multiply in a deep model"
            )
        looked_at = [b.numpy() for b in inputs.images(IMAGES, self.spec.batch_size)]
        for said in dict.fromkeys(
            mark_float_nodes_(model, looked_at) for model in (fp32, done.qdq)
        ):
            if said:
                self.note(said)
        self.clock.lap("half ranges")
        staging = self.work.staging()
        paths = (
            save_onnx(fp32, staging / FP32),
            save_onnx(done.qdq, staging / QDQ),
            done.encodings.save(staging / ENCODINGS),
        )
        self.clock.lap("write")
        record = self._record(inputs, done, file_records(paths))
        self.work.publish(record.files, record)
        return record

    def _record(
        self, inputs: Inputs, done: Attempt, files: dict[str, FileRecord]
    ) -> QuantizeRecord:
        captured = inputs.captured
        return QuantizeRecord(
            **header("quantize", self.spec),
            model={
                "name": self.loaded.name,
                "weights": self.loaded.weights,
                **done.encodings.origin,
                "parameters": sum(p.numel() for p in self.loaded.module.parameters()),
                "weight_values": {
                    q.layer: _values(q) for q in done.placement.quantizers if q.role == "weight"
                },
                "dynamic_batch": captured.dynamic_batch,
                "capture_max_rel_diff": captured.max_rel_diff,
                "normalisation": captured.passes,
            },
            data={
                **describe(self.source),
                "calibration_ids": [self.source.ids[i] for i in self.indices],
                "calibration_sha256": self.source.short_contents(self.indices),
            },
            preprocess=self.preprocess,
            calibration={
                "calibrator": done.encodings.origin["calibrator"],
                "images": len(self.indices),
                "cache": done.cache_note,
                "weights": _weights_said(done),
            },
            preset=self.preset,
            methods=done.methods,
            quantizers=_quantizer_records(done, int4=self.spec.weight_storage == "int4"),
            left_in_float=_float_records(done.placement, done.stats),
            parity=done.parity,
            files=files,
            notes=self.note.lines,
            seconds=self.clock.seconds,
            environment=environment(),
        )


def _tried(name: str, done: Attempt) -> TryRecord:
    answer = done.parity.answer
    return TryRecord(
        step=name,
        agreement=answer.agreement,
        equal=answer.equal,
        sqnr_db=answer.sqnr_db,
        exact=answer.exact,
    )


def _shared(done: Attempt) -> float | None:
    """Return the share of equal predictions or integers, percent; None for other outputs."""
    answer = done.parity.answer
    return answer.agreement if answer.agreement is not None else answer.equal


def _rank(done: Attempt) -> tuple[bool, float, float]:
    answer, share = done.parity.answer, _shared(done)
    sqnr = (
        -math.inf if not answer.finite else math.inf if answer.sqnr_db is None else answer.sqnr_db
    )
    return done.parity.passed, 0.0 if share is None else share, sqnr


def _passes(done: Attempt, floor: float) -> bool:
    """Whether the quick check passes.

    It takes equal predictions without ruined numbers behind them, or numbers that are close.
    """
    passed, share, sqnr = _rank(done)
    if floor == 0.0:  # asked for: nothing is to be checked
        return passed
    return passed and (
        sqnr >= CHECK_SQNR_DB
        or (_shared(done) is not None and share >= floor and sqnr >= LEAST_SQNR_DB)
    )


def _check_words(done: Attempt, floor: float) -> str:
    answer = done.parity.answer
    if answer.equal is not None:
        return f"{floor:g} % equal integers"
    close = f"{CHECK_SQNR_DB:g} dB of output SQNR"
    return (
        close
        if answer.agreement is None
        else f"{floor:g} % agreement at {LEAST_SQNR_DB:g} dB or more, or {close}"
    )


def _weights_said(done: Attempt) -> str:
    formats = {q.format.kind for q in done.placement.active if q.is_weight}
    said = {
        "uniform": "per output channel, scale searched for the least output error",
        "asymmetric": "asymmetric, lowest to highest value",
    }
    return "; ".join(said[k] for k in sorted(formats) if k in said)


def _values(quantizer: Quantizer) -> int:
    value = quantizer.source.meta.get("val")
    return int(value.numel()) if isinstance(value, torch.Tensor) else 0


def _choose_images(source: Source, spec: QuantizeSpec, note: Callable[[str], None]) -> list[int]:
    indices = source.sample(spec.calib_images, spec.seed)
    if len(indices) < spec.calib_images:
        note(
            f"{source.name} has {len(indices)} images, {spec.calib_images} were asked for: all "
            "are used"
        )
    if len(indices) < FEW_IMAGES:
        note(
            f"{len(indices)} calibration images are few, ranges may be too narrow: 256 or more "
            "are usual"
        )
    return indices


def _weight_stats(
    graph: fx.GraphModule, quantizer: Quantizer, encodings: Encodings
) -> QuantizerStats:
    """Return what quantization did to a weight: stored values against the original ones.

    The rounding of methods is included.
    """
    weight, fmt, scale = (
        get_constant(graph, quantizer.source),
        quantizer.format,
        encodings.scale(quantizer.name),
    )
    assert weight is not None
    stored, zero = encodings.constant(graph, quantizer.source), encodings.zero_point(quantizer.name)
    values = fake_quantize(
        stored, scale, zero, fmt.axis, fmt.qmin, fmt.qmax, quantizer.name, fmt.kind
    )
    sqnr = ratio_db(float(weight.square().sum()), float((weight - values).square().sum()))
    where = positions(weight, scale, zero, fmt.axis, fmt.kind)
    outside = (where > fmt.qmax + 0.5) | (where < fmt.qmin - 0.5)
    return QuantizerStats(
        sqnr_db=round(sqnr, 3) if math.isfinite(sqnr) else None,
        saturated=float(outside.float().mean()),
        low=float(weight.min()),
        high=float(weight.max()),
    )


def _quantizer_records(done: Attempt, *, int4: bool) -> list[QuantizerRecord]:
    encodings, shared = done.encodings, shared_names(done.placement, done.encodings)
    mixed = {
        q.consumer
        for q in done.placement.active
        if q.weight_only
        or not q.format.has_kernel
        or (int4 and q.is_weight and q.format.bits == INT4_BITS)
    }
    records = []
    for q in done.placement.active:
        amax = encodings.amax[q.name]
        stats = (
            _weight_stats(done.graph, q, encodings)
            if q.is_weight
            else done.measured[shared[q.name]]
        )
        runs = where_it_runs(
            q.format,
            is_weight=q.is_weight,
            partner=q.role == "residual" or q.consumer not in mixed,
            int4=int4,
        )
        records.append(
            QuantizerRecord(
                name=q.name,
                layer=q.layer,
                role=q.role,
                format=q.format.label,
                granularity=q.format.granularity,
                amax=float(amax.max()),
                amax_min=float(amax.min()),
                channels=amax.numel() if amax.ndim else None,
                sqnr_db=stats.sqnr_db,
                saturated=stats.saturated,
                low=stats.low,
                high=stats.high,
                histogram=stats.histogram,
                histogram_limit=stats.histogram_limit,
                runs=runs.label,
                extra_ops=runs.extra_ops,
                computes_in=runs.computes_in,
            )
        )
    return records


def _float_records(placement: Placement, stats: Mapping[str, ActivationStats]) -> list[FloatRecord]:
    records = []
    for q in placement.quantizers:
        if q.float_reason is not None:
            seen = None if q.is_weight else stats[q.stats_key]
            records.append(
                FloatRecord(
                    name=q.name,
                    layer=q.layer,
                    role=q.role,
                    reason=q.float_reason,
                    low=seen.low if seen else None,
                    high=seen.high if seen else None,
                )
            )
    return records
