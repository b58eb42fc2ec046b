"""One model as ONNX for several targets, each file checked before it is written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec
import onnx
import torch
from torch import fx

from trtq.artifact import write_bytes
from trtq.data.answers import kind_in, percent_words
from trtq.data.metrics import Array
from trtq.engine.agreement import Comparison, answers, as_float64, compare, run_rounded, worst_sqnr
from trtq.engine.lint_target import reader_of
from trtq.errors import ExportError
from trtq.export.cache_ranges import ranges_for
from trtq.export.calibration_cache import cache_number, write_cache
from trtq.export.codes import count_qdq
from trtq.export.feeds import Given
from trtq.export.fp16 import convert_to_half
from trtq.export.fp16_ranges import FLOAT_NODES, find_float_nodes
from trtq.export.lint import lint
from trtq.export.lint_view import Finding
from trtq.export.onnx_file import copy_model, save_onnx, set_metadata_, target_metadata
from trtq.export.profile import Profile, furthest_scale
from trtq.export.strip import strip_qdq
from trtq.export.to_onnx import export_onnx
from trtq.flow.model import Model
from trtq.graph.device import device_of, moved
from trtq.graph.feed import Feed, outputs_of
from trtq.graph.signature import output_names
from trtq.platform.target import INT4_OPSET, Target, least_opset, require_format
from trtq.progress import Notes
from trtq.quant.encodings import Encodings
from trtq.quant.placement import placement_of
from trtq.quant.simulate import insert_fake_quantize

ALTERNATIVES = {
    "INT8": "Add --fallback: the float model for FP16",
    "FP8": "Allocate again without fp8",
    "FP4": "Quantize again with other --bits",
    "INT4 weights": "Quantize again with other --bits",
}


class ProfileRow(msgspec.Struct, frozen=True, kw_only=True):
    """One file.

    Attributes:
        target: as asked for.
        file: its name in the folder.
        reader: who it was written for.
        opset: of it.
        kind: what of it is quantized and which types it contains.
        pairs: Q/DQ pairs.
        scales_ulp: how far its scales are from the encodings', units in the last place.
        float_nodes: nodes that must remain in FP32 beside FP16, and why; types say so from 10 on,
            the builder before.
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
        findings_text = (
            f", {len(self.findings)} findings ({self.findings[0].rule})" if self.findings else ""
        )
        islands = f", {len(self.float_nodes)} nodes in FP32" if self.float_nodes else ""
        same = (
            ""
            if self.agreement is None
            else f"{percent_words(self.agreement)} of torch's predictions, "
        )
        return f"{self.file}: opset {self.opset}, {self.kind}{islands}, {same}{sqnr}{findings_text}"


def require_formats(target: Target, encodings: Encodings, *, fallback: bool) -> None:
    """Refuse formats that a target has no arithmetic for, before any work.

    Args:
        target: that a file is wanted for.
        encodings: of the model.
        fallback: INT8 may be replaced by the float model.

    Raises:
        UsageError: names the format and the alternative.
    """
    needs = {f.needs for f in encodings.formats.values()}
    if fallback:
        needs.discard("INT8")
    for need in sorted(needs):
        require_format(target, need, doing="export", hint=ALTERNATIVES[need])


@dataclass(kw_only=True)
class ProfileWriter:
    """Writes profiles of one model; what two targets share is made once.

    Attributes:
        model: captured, float32.
        encodings: of the model.
        batches: inputs that ranges are taken from and the files compared on.
        origin: metadata of every file.
        half: write FP16 types where a release reads types.
        half_sqnr: dB below which a node remains in FP32 beside FP16.
        note: receives what a user should know.
    """

    model: Model
    encodings: Encodings
    batches: Sequence[Feed]
    origin: Mapping[str, object]
    half: bool
    half_sqnr: float
    note: Notes

    def __post_init__(self) -> None:
        names = self.model.input_names
        self.images: list[Given] = [
            {n: t.numpy() for n, t in zip(names, feed, strict=True)} for feed in self.batches
        ]
        self.made: dict[tuple[int, bool, bool], tuple[onnx.ModelProto, dict[str, str]]] = {}

    @cached_property
    def simulated(self) -> fx.GraphModule:
        """The graph with fake-quantize calls."""
        graph = self.model.graph.module
        return insert_fake_quantize(graph, placement_of(graph, self.encodings), self.encodings)

    @cached_property
    def answers(self) -> dict[bool, dict[str, Array]]:
        """Answers of torch, by output: quantized (True) and in float (False), float64."""
        graphs = {True: self.simulated, False: self.model.graph.module}
        with torch.inference_mode():
            return {q: _answers_of(g, self.batches) for q, g in graphs.items()}

    def write(self, target: Target, out: Path) -> ProfileRow:
        """Write the file of a target, and its cache where that release reads one.

        Args:
            target: a device and a release.
            out: folder, must exist.

        Raises:
            ExportError: the file does not compute what was simulated.
        """
        lacking = target.lacks("INT8")
        profile = self._profile(target, quantized=not lacking)
        model, kept = self._float32(profile)
        kept = kept if self.half else {}
        final = convert_to_half(model, kept) if profile.half else copy_model(model)
        set_metadata_(final, target_metadata(target))
        name = re.sub(r"[^\w.-]", "-", target.text)
        compared, ulp = furthest_scale(final, self.encodings)
        if profile.quantized and not compared:
            raise ExportError(
                f"Cannot compare the scales of {name}.onnx", "no pair of it names its quantizer"
            )
        comparison = self._compare(final, name, quantized=profile.quantized)
        save_onnx(final, out / f"{name}.onnx")
        reader = reader_of(target)
        return ProfileRow(
            target=target.text,
            file=f"{name}.onnx",
            reader=reader.name,
            opset=profile.opset,
            kind=_words(profile, typed=target.typed),
            pairs=count_qdq(final),
            scales_ulp=ulp,
            float_nodes=kept,
            findings=lint(final, reader),
            agreement=comparison.agreement,
            sqnr_db=comparison.sqnr_db,
            cache="" if target.typed or lacking else self._cache(final, target, out, name),
            fallback=f"{target.device} has no INT8 arithmetic: the float model" if lacking else "",
        )

    def _profile(self, target: Target, *, quantized: bool) -> Profile:
        four = any(
            f.bits == 4 and f.axis is not None and f.kind == "uniform"
            for f in self.encodings.formats.values()
        )
        int4 = four and not target.lacks("INT4 weights")
        needs = {f.needs for f in self.encodings.formats.values()} if quantized else set[str]()
        least = max(INT4_OPSET if int4 else 0, least_opset(needs))
        return Profile(
            opset=max(target.opset, least),
            quantized=quantized,
            half=target.typed and self.half,
            int4=int4,
        )

    def _float32(self, profile: Profile) -> tuple[onnx.ModelProto, dict[str, str]]:
        """Return the model with float32 types, and the nodes that FP16 would harm.

        The model's metadata names those nodes, too.
        """
        key = profile.opset, profile.quantized, profile.int4
        if key not in self.made:
            graph = self.simulated if profile.quantized else self.model.graph.module
            model = export_onnx(graph, opset=profile.opset, int4=profile.int4, note=self.note)
            kept = find_float_nodes(model, self.images, min_sqnr_db=self.half_sqnr)
            precision = "int8" if profile.quantized else "fp32"
            set_metadata_(model, {**self.origin, "precision": precision, FLOAT_NODES: kept})
            self.made[key] = model, kept
        return self.made[key]

    def _compare(self, model: onnx.ModelProto, name: str, *, quantized: bool) -> Comparison:
        """Compare a file in ONNX Runtime, every FP16 result rounded, with torch.

        Raises:
            ExportError: it computes something else; nothing of it was written.
        """
        got = answers(run_rounded(model), self.images)
        wanted = self.answers[quantized]
        error = worst_sqnr(self.answers[False], wanted) if quantized else None
        comparison = compare(f"{name}.onnx", wanted, got, error, kind_in(self.origin))
        if not comparison.passed:
            far = (
                "NaN or infinite"
                if comparison.sqnr_db is None
                else f"{comparison.sqnr_db:.1f} dB from torch's simulation"
            )
            raise ExportError(
                f"{name}.onnx does not compute what was simulated",
                f"its answers are {far}",
                "Export with --precision fp32",
            )
        return comparison

    def _cache(self, model: onnx.ModelProto, target: Target, out: Path, name: str) -> str:
        """Write the calibration cache and the float file it is for.

        Returns "" where the ranges do not fit a cache.
        """
        assert target.release is not None
        if any(
            f.bits != 8 or not f.has_kernel or f.kind != "uniform"
            for f in self.encodings.formats.values()
        ):
            self.note(f"{name}: no calibration cache, it holds 8-bit ranges around 0 alone")
            return ""
        # It keeps what methods folded into it: the ranges are of these tensors.
        plain = strip_qdq(model)
        save_onnx(plain, out / f"{name}.fp32.onnx")
        ranges = ranges_for(model, plain, f"{name}.onnx")
        self.note(*(f"{name}: {line}" for line in ranges.notes))
        number = cache_number(target.release, target.patch)
        write_bytes(out / f"{name}.cache", write_cache(ranges.scales, number).encode())
        self.note(
            f"{name}.cache is for TRT-{number} alone: another patch of it ignores the file "
            "(trtq export-calib --release-number)"
        )
        return f"{name}.cache"


def _answers_of(graph: fx.GraphModule, batches: Sequence[Feed]) -> dict[str, Array]:
    """Return every output of a graph by name over all batches, computed where the graph is."""
    device = device_of(graph)
    batch_outputs = [outputs_of(graph(*feed)) for feed in moved(batches, device)]
    return {
        name: as_float64(torch.cat([m[i] for m in batch_outputs]).cpu().numpy())
        for i, name in enumerate(output_names(graph))
    }


def _words(profile: Profile, *, typed: bool) -> str:
    """Return what of a file is quantized and which types it contains."""
    types = "precision by flags"
    if typed:
        types = f"{'FP16' if profile.half else 'FP32'} types in the graph"
    if profile.int4:
        return f"INT8 Q/DQ, INT4 weights, {types}"
    return f"{'Q/DQ pairs' if profile.quantized else 'float'}, {types}"
