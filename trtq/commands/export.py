"""``trtq export``: one set of encodings as ONNX for every target.

Each file is checked before it is written.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import torch
from torch import fx

from trtq.artifact import (
    Environment,
    FileRecord,
    Record,
    ensure_writable_dir,
    environment,
    header,
    locked,
    write_bytes,
    write_json,
)
from trtq.commands.calibration import ranges_for
from trtq.commands.loading import input_of, open_given, open_model, require_own
from trtq.data.answers import kind_in, percent_words
from trtq.data.metrics import Array, sqnr_words
from trtq.engine.agreement import Comparison, answers, as_float64, compare, run_rounded, worst_sqnr
from trtq.engine.lint_target import reader_of
from trtq.errors import ExportError, UsageError
from trtq.export.calibration_cache import cache_number, write_cache
from trtq.export.feeds import Given
from trtq.export.fp16 import convert_to_half
from trtq.export.fp16_ranges import FLOAT_NODES, find_float_nodes
from trtq.export.lint import lint
from trtq.export.lint_view import Finding
from trtq.export.onnx_file import copy_model, count_qdq, save_onnx, set_metadata_
from trtq.export.profile import Profile, furthest_scale
from trtq.export.strip import strip_qdq
from trtq.export.to_onnx import export_onnx
from trtq.files import ENCODINGS, EXPORT_JSON, LOCK
from trtq.flow.data import samples_from
from trtq.flow.opset import INT4_OPSET, target_metadata
from trtq.flow.ptq import origin_of
from trtq.graph.feed import Feed, outputs_of
from trtq.graph.signature import input_names, output_names
from trtq.platform.target import Target
from trtq.progress import Notes, Progress, Silent
from trtq.quant.encodings import Encodings
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize
from trtq.specs import ExportSpec

ALTERNATIVES = {
    "INT8": "Add --fallback: the float model for FP16",
    "FP8": "Allocate again without fp8",
}
BATCH = 8


class ProfileRow(msgspec.Struct, frozen=True, kw_only=True):
    """One file.

    Attributes:
        target: as asked for.
        file: its name in the folder.
        reader: who it was written for.
        opset: of it.
        kind: what of it is quantized and which types it contains.
        pairs: Q/DQ pairs.
        scales_ulp: how far its scales lie from the encodings', units in the last place.
        float_nodes: nodes that must stay in FP32 beside FP16, and why; types say so from 10 on, the
            builder before.
        findings: of the lint rules for this target.
        agreement: share of predictions equal to torch's simulation, percent, in ONNX Runtime on the
            CPU, every FP16 result rounded; None where the output is no scores of classes.
        sqnr_db: signal to the difference from it; None when there is none.
        cache: the calibration cache beside it, "" for none.
        fallback: why it is not what the encodings say, "" when it is.
    """

    target: str
    file: str
    reader: str
    opset: int
    kind: str
    pairs: int
    scales_ulp: int
    float_nodes: dict[str, str]
    findings: list[Finding]
    agreement: float | None
    sqnr_db: float | None
    cache: str
    fallback: str

    @property
    def line(self) -> str:
        """One line for a person."""
        sqnr = "no difference" if self.sqnr_db is None else f"{self.sqnr_db:.1f} dB"
        found = (
            f", {len(self.findings)} findings ({self.findings[0].rule})" if self.findings else ""
        )
        islands = f", {len(self.float_nodes)} nodes in FP32" if self.float_nodes else ""
        same = (
            ""
            if self.agreement is None
            else f"{percent_words(self.agreement)} of torch's predictions, "
        )
        return f"{self.file}: opset {self.opset}, {self.kind}{islands}, {same}{sqnr}{found}"


class ExportRecord(Record, frozen=True, kw_only=True):
    """What ``trtq export`` wrote.

    Attributes:
        profiles: one row for each target.
        images: that ranges were taken from and the files compared on.
    """

    encodings_sha256: str
    profiles: list[ProfileRow]
    images: int
    notes: list[str]
    files: dict[str, FileRecord]
    environment: Environment

    @property
    def summary(self) -> str:
        """One line for a person."""
        worst = max((p.scales_ulp for p in self.profiles), default=0)
        clean = sum(not p.findings for p in self.profiles)
        shares = [p.agreement for p in self.profiles if p.agreement is not None]
        sqnrs = [p.sqnr_db for p in self.profiles if p.sqnr_db is not None]
        least = f"SQNR against torch {sqnr_words(min(sqnrs, default=None))}"
        if shares:
            least = f"agreement with torch {percent_words(min(shares))}"
        return (
            f"{len(self.profiles)} targets; scales equal to {worst} ulp; {clean} files without "
            f"findings; least {least} on {self.images} images (ONNX Runtime, CPU)"
        )


def export_profiles(spec: ExportSpec, progress: Progress | None = None) -> ExportRecord:
    """Write ``OUT/TARGET.onnx`` for every target, and ``export.json``.

    Releases without typed graphs get calibration caches, too.

    Raises:
        UsageError: a target is unknown, or lacks INT8 or FP8 and no fallback is allowed.
        EncodingsError: the encodings are of another model.
    """
    told = progress or Silent()
    note = Notes(told.note)
    if not spec.target:
        raise UsageError(
            "trtq export needs --target",
            "it can be given several times",
            "trtq targets lists what there is",
        )
    targets = [Target.parse(t) for t in spec.target]
    encodings = Encodings.load(Path(spec.encodings))
    for target in targets:
        _require_formats(target, encodings, fallback=spec.fallback)
    out = ensure_writable_dir(Path(spec.out))
    if Path(spec.encodings).resolve().parent == out.resolve():
        raise UsageError(
            f"--out {spec.out} is where the encodings lie",
            "their own record speaks of that folder",
            "Give another folder",
        )
    loaded = open_model(spec)
    data = open_given(spec, note, limit=spec.images)
    given = input_of(spec, loaded, data)
    note(*given.notes)
    model = given.capture(loaded)
    captured = model.graph
    require_own(encodings, captured.module, spec.encodings, "export")
    samples = samples_from(data, model)
    size = BATCH if captured.dynamic_batch else 1
    names = input_names(captured.module)
    images = list(samples.take(spec.images, spec.seed).inputs(spec.images, size, names))
    simulated = insert_fake_quantize(
        captured.module, placement_of(captured.module, encodings), encodings
    )
    origin = {
        **origin_of(model, model.answer_kind(samples.classes)),
        "encodings_sha256": encodings.digest(),
    }
    writer = _Writer(spec, captured.module, simulated, images, origin, note)
    with locked(out / LOCK, waiting=told.note):
        (out / EXPORT_JSON).unlink(missing_ok=True)
        encodings.save(out / ENCODINGS)
        told.begin("Writing profiles", len(targets))
        rows = []
        for target in targets:
            rows.append(writer.write(target, encodings, out))
            told.advance(1)
        names = [
            n
            for r in rows
            for n in (
                r.file,
                *((r.cache, r.cache.replace(".cache", ".fp32.onnx")) if r.cache else ()),
            )
        ]
        files = {n: FileRecord.of(out / n) for n in (*names, ENCODINGS)}
        record = ExportRecord(
            **header("export", spec),
            encodings_sha256=encodings.digest(),
            profiles=rows,
            images=sum(len(feed[0]) for feed in images),
            notes=note.lines,
            files=files,
            environment=environment(),
        )
        write_json(out / EXPORT_JSON, record)
    return record


def _require_formats(target: Target, encodings: Encodings, *, fallback: bool) -> None:
    """Refuse formats that a target has no arithmetic for, before any work.

    Raises:
        UsageError: names the format and the alternative.
    """
    kinds = {"FP8" if f.kind == "fp8" else "INT8" for f in encodings.formats.values()}
    if fallback:
        kinds.discard("INT8")
    for kind in sorted(kinds):
        target.require(kind, doing="export", hint=ALTERNATIVES[kind])


def _answers_of(graph: fx.GraphModule, images: Sequence[Feed]) -> dict[str, Array]:
    """Return every output of a graph by name over all images."""
    made = [outputs_of(graph(*b)) for b in images]
    return {
        name: np.concatenate([as_float64(m[i].numpy()) for m in made])
        for i, name in enumerate(output_names(graph))
    }


class _Writer:
    """Writes profiles of one model; what two targets share is made once."""

    def __init__(
        self,
        spec: ExportSpec,
        plain: fx.GraphModule,
        simulated: fx.GraphModule,
        images: list[Feed],
        origin: dict[str, Any],
        note: Notes,
    ) -> None:
        self.spec, self.plain, self.simulated = spec, plain, simulated
        self.origin, self.note = origin, note
        names = input_names(plain)
        self.images: list[Given] = [
            {n: t.numpy() for n, t in zip(names, feed, strict=True)} for feed in images
        ]
        with torch.inference_mode():
            self.answers = {
                q: _answers_of(g, images) for q, g in ((True, simulated), (False, plain))
            }
        self.made: dict[tuple[int, bool, bool], tuple[onnx.ModelProto, dict[str, str]]] = {}

    def write(self, target: Target, encodings: Encodings, out: Path) -> ProfileRow:
        """Write the file of a target, and its cache where that release reads one."""
        fallback = (
            ""
            if not target.lacks("INT8")
            else f"{target.device} has no INT8 arithmetic: the float model"
        )
        typed = target.typed
        int4 = _int4(target, encodings)
        half = typed and self.spec.precision == "fp16"
        profile = Profile(
            opset=INT4_OPSET if int4 else target.opset, quantized=not fallback, half=half, int4=int4
        )
        model, kept = self.float32(profile)
        if self.spec.precision != "fp16":
            kept = {}
        final = convert_to_half(model, kept) if profile.half else copy_model(model)
        set_metadata_(final, target_metadata(target))
        name = re.sub(r"[^\w.-]", "-", target.text)
        compared, ulp = furthest_scale(final, encodings)
        if profile.quantized and not compared:
            raise ExportError(
                f"Cannot compare the scales of {name}.onnx", "no pair of it names its quantizer"
            )
        found = self.compare(final, name, quantized=profile.quantized)
        save_onnx(final, out / f"{name}.onnx")
        reader = reader_of(target)
        cache = "" if typed or fallback else self.cache(final, target, encodings, out, name)
        types = (
            f"{'FP16' if profile.half else 'FP32'} types in the graph"
            if typed
            else "precision by flags"
        )
        words = (
            "INT8 Q/DQ, INT4 weights"
            if profile.int4
            else "Q/DQ pairs"
            if profile.quantized
            else "float"
        )
        return ProfileRow(
            target=target.text,
            file=f"{name}.onnx",
            reader=reader.name,
            opset=profile.opset,
            kind=f"{words}, {types}",
            pairs=count_qdq(final),
            scales_ulp=ulp,
            float_nodes=kept,
            findings=lint(final, reader),
            agreement=found.agreement,
            sqnr_db=found.sqnr_db,
            cache=cache,
            fallback=fallback,
        )

    def float32(self, profile: Profile) -> tuple[onnx.ModelProto, dict[str, str]]:
        """Return the model with float32 types, and the nodes that FP16 would harm.

        The model's metadata names those nodes, too.
        """
        key = profile.opset, profile.quantized, profile.int4
        if key not in self.made:
            graph = self.simulated if profile.quantized else self.plain
            model = export_onnx(graph, opset=profile.opset, int4=profile.int4, note=self.note)
            kept = find_float_nodes(model, self.images, min_sqnr_db=self.spec.half_sqnr)
            set_metadata_(
                model,
                {
                    **self.origin,
                    "precision": "int8" if profile.quantized else "fp32",
                    FLOAT_NODES: kept,
                },
            )
            self.made[key] = model, kept
        return self.made[key]

    def compare(self, model: onnx.ModelProto, name: str, *, quantized: bool) -> Comparison:
        """Compare a file in ONNX Runtime, every FP16 result rounded, with torch.

        Raises:
            ExportError: it computes something else; nothing of it was written.
        """
        got = answers(run_rounded(model), self.images)
        wanted = self.answers[quantized]
        error = worst_sqnr(self.answers[False], wanted) if quantized else None
        found = compare(f"{name}.onnx", wanted, got, error, kind_in(self.origin))
        if not found.passed:
            far = (
                "NaN or infinite"
                if found.sqnr_db is None
                else f"{found.sqnr_db:.1f} dB from torch's simulation"
            )
            raise ExportError(
                f"{name}.onnx does not compute what was simulated",
                f"its answers are {far}",
                "Export with --precision fp32",
            )
        return found

    def cache(
        self, model: onnx.ModelProto, target: Target, encodings: Encodings, out: Path, name: str
    ) -> str:
        """Write the calibration cache and the float file it is for.

        Returns "" where the ranges do not fit a cache.
        """
        assert target.release is not None
        if any(
            f.bits != 8 or not f.has_kernel or f.kind != "uniform"
            for f in encodings.formats.values()
        ):
            self.note(f"{name}: no calibration cache, it holds 8-bit ranges around 0 alone")
            return ""
        # It keeps what methods folded into it: the ranges are of these tensors.
        plain = strip_qdq(model)
        save_onnx(plain, out / f"{name}.fp32.onnx")
        scales, _, _, said = ranges_for(model, plain, f"{name}.onnx")
        self.note(*(f"{name}: {line}" for line in said))
        number = cache_number(target.release, target.patch)
        write_bytes(out / f"{name}.cache", write_cache(scales, number).encode())
        self.note(
            f"{name}.cache is for TRT-{number} alone: another patch of it ignores the file "
            "(trtq export-calib --release-number)"
        )
        return f"{name}.cache"


def _int4(target: Target, encodings: Encodings) -> bool:
    """Whether weights of 4 bits can be stored as INT4 there."""
    four = any(
        f.bits == 4 and f.axis is not None and f.kind == "uniform"
        for f in encodings.formats.values()
    )
    return four and not target.lacks("INT4 weights")
