"""One attempt at quantizing a captured model.

Its stages: place, calibrate, apply the methods, simulate, export, compare the two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import onnx
import torch
from torch import fx

from trtq.artifact import digest_of, ensure_writable_dir, package_version
from trtq.commands.allocation import read_allocation
from trtq.commands.opset import check_files, opset_of, target_metadata, target_of
from trtq.data.answers import ANSWER, Kind
from trtq.data.preprocess import Preprocess, batches
from trtq.data.source import Source
from trtq.errors import CalibrationError, UsageError
from trtq.export.onnx_file import set_metadata_
from trtq.export.parity import ParityRecord, QuantizerStats, check_parity
from trtq.export.to_onnx import export_onnx
from trtq.graph.capture import CapturedGraph
from trtq.methods.base import Method, MethodContext
from trtq.methods.registry import choose, require_fit
from trtq.models.load import LoadedModel
from trtq.paths import path_variable
from trtq.progress import Clock, Progress
from trtq.quant.cache import CACHE_VERSION, CacheKey, CalibrationCache
from trtq.quant.calibrate import ActivationStats, make_encodings, summarize_all
from trtq.quant.calibrators import calibrator_key
from trtq.quant.digest import structure_digest, weights_digest
from trtq.quant.encodings import Encodings
from trtq.quant.formats import BitConfig
from trtq.quant.observe import observe
from trtq.quant.placement import Placement, place, rules_for
from trtq.quant.simulate import insert_fake_quantize
from trtq.records.quantize import MethodRecord
from trtq.specs import QuantizeSpec
from trtq.version import __version__

MAX_FOLD_DIFF = 1e-3


@dataclass(kw_only=True)
class Inputs:
    """What all attempts of one run share: the model, the images, and the receiver of messages."""

    loaded: LoadedModel
    captured: CapturedGraph
    source: Source
    indices: list[int]
    preprocess: Preprocess
    progress: Progress
    clock: Clock
    note: Callable[[str], None]
    answer: Kind

    @cached_property
    def weights_sha256(self) -> str:
        """Of the model's own weights, before any method."""
        return weights_digest(self.captured.module)

    @cached_property
    def reference(self) -> torch.Tensor:
        """What the model itself answers for the example."""
        with torch.no_grad():
            answer: torch.Tensor = self.captured.module(self.captured.example)
        return answer

    def images(self, count: int, batch_size: int) -> Iterator[torch.Tensor]:
        """Return batches of the first ``count`` calibration images."""
        return batches(
            self.source,
            self.indices[:count],
            self.preprocess,
            batch_size if self.captured.dynamic_batch else 1,
        )

    def export(self, graph: fx.GraphModule, spec: QuantizeSpec, **metadata: str) -> onnx.ModelProto:
        """Return ``graph`` as ONNX, with the metadata later verbs read."""
        model = export_onnx(
            graph, opset=opset_of(spec), int4=spec.weight_storage == "int4", note=self.note
        )
        origin = {
            "preprocess": self.preprocess,
            "model": self.loaded.name,
            "weights": self.loaded.weights,
            ANSWER: self.answer,
            **target_metadata(target_of(spec)),
        }
        set_metadata_(model, {**origin, **metadata})
        self.clock.lap("export")
        return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A quantized model that is not written yet, and how it was made."""

    spec: QuantizeSpec
    graph: fx.GraphModule
    placement: Placement
    encodings: Encodings
    stats: Mapping[str, ActivationStats]
    methods: list[MethodRecord]
    cache_note: str
    qdq: onnx.ModelProto
    parity: ParityRecord
    measured: dict[str, QuantizerStats]


def check_spec(spec: QuantizeSpec) -> None:
    """Refuse what contradicts itself, before anything is loaded.

    Raises:
        UsageError: names what contradicts what.
    """
    choose(spec.method, spec.method_arg)
    check_files(spec)
    if spec.allocation and spec.bits != "w8a8":
        raise UsageError(
            "Give --bits or --allocation, not both",
            f"--bits {spec.bits} and {spec.allocation}",
            "The allocation has the widths",
        )
    if spec.weight_storage == "int4" and not spec.allocation and not spec.bits.startswith("w4"):
        raise UsageError(
            "Cannot store weights as INT4",
            f"they have other widths with --bits {spec.bits}",
            "Give --bits w4a8 or w4a4",
        )


def attempt(inputs: Inputs, spec: QuantizeSpec) -> Attempt:
    """Quantize a copy of the captured graph as ``spec`` says.

    Raises:
        TrtqError: nothing to quantize, a method that does not fit, a failed calibration or export.
    """
    captured, chosen = inputs.captured, choose(spec.method, spec.method_arg)
    context = _context(inputs, spec)
    graph, placement = context.graph, context.placement
    for method, _ in chosen:
        require_fit(method, context)
    inputs.clock.lap("place")
    before = _apply(inputs, context, [c for c in chosen if c[0].stage == "before"])
    weights = weights_digest(graph) if before else inputs.weights_sha256
    stats, origin, cache_note = _calibrate(inputs, spec, graph, placement, weights)
    origin["methods"] = " ".join(m.name for m, _ in chosen)
    context.encodings = encodings = make_encodings(graph, placement, stats, origin)
    inputs.clock.lap("encode")
    for method, arguments in chosen:
        if method.finish is not None:
            method.finish(context, arguments)
    after = _apply(inputs, context, [c for c in chosen if c[0].stage == "after"])
    encodings.round_scales_to_fp16_()
    encodings.constants = {**context.folded, **encodings.constants}
    encodings.origin = {**encodings.origin, "structure_sha256": structure_digest(graph)}
    simulated = insert_fake_quantize(graph, placement, encodings)
    qdq = inputs.export(simulated, spec, precision="int8", encodings_sha256=encodings.digest())
    compared = list(inputs.images(spec.parity_images, spec.batch_size))
    inputs.progress.begin(
        "Comparing torch and ONNX Runtime", min(spec.parity_images, len(inputs.indices))
    )
    parity, measured = check_parity(
        captured.module,
        simulated,
        qdq,
        compared,
        known=inputs.answer,
        progress=inputs.progress.advance,
    )
    inputs.clock.lap("parity")
    return Attempt(
        spec=spec,
        graph=graph,
        placement=placement,
        encodings=encodings,
        stats=stats,
        methods=[*before, *after],
        cache_note=cache_note,
        qdq=qdq,
        parity=parity,
        measured=measured,
    )


def fitting(inputs: Inputs, spec: QuantizeSpec, asked: Sequence[str]) -> QuantizeSpec:
    """Return ``spec`` without the methods that have nothing to do on this model.

    Methods in ``asked`` stay, and raise later.
    """
    if set(spec.method) <= set(asked):
        return spec
    context = _context(inputs, spec)
    kept = [
        m.name
        for m, _ in choose(spec.method, spec.method_arg)
        if m.name in asked or m.not_applicable_reason(context) is None
    ]
    return msgspec.structs.replace(spec, method=tuple(m for m in spec.method if m in kept))


def _context(inputs: Inputs, spec: QuantizeSpec) -> MethodContext:
    """Return a copy of the captured graph with its quantizers, for the methods."""
    captured = inputs.captured
    graph = fx.GraphModule(captured.module, copy.deepcopy(captured.module.graph))
    chosen = (
        read_allocation(Path(spec.allocation), inputs.weights_sha256) if spec.allocation else {}
    )
    placement = place(
        graph,
        rules=rules_for(target_of(spec)),
        high_precision=spec.high_precision,
        bits=BitConfig.parse(spec.bits),
        attention=spec.attention,
        layer_bits=chosen,
    )
    if not placement.quantizers:
        raise CalibrationError(
            f"There is nothing to quantize in {spec.model}",
            "its graph has no convolution, linear or matmul",
        )
    return MethodContext(
        graph=graph,
        placement=placement,
        dynamic_batch=captured.dynamic_batch,
        note=inputs.note,
        begin=inputs.progress.begin,
        advance=inputs.progress.advance,
        resume=ensure_writable_dir(cache_folder(spec.calib_cache), option="--calib-cache"),
        images=lambda count: inputs.images(count, spec.batch_size),
    )


def cache_folder(given: str | None) -> Path:
    """Return the folder of the calibration cache.

    It is the one asked for, ``$TRTQ_CALIB_CACHE``, or ``./calib_cache``.
    """
    return Path(given or path_variable("TRTQ_CALIB_CACHE") or "calib_cache")


def _apply(
    inputs: Inputs, context: MethodContext, chosen: list[tuple[Method, dict[str, Any]]]
) -> list[MethodRecord]:
    records = []
    for method, arguments in chosen:
        did = method.run(context, arguments)
        if method.exact:
            _require_same_function(inputs, context, method.name)
        # On this model the method may run differently than it mostly does.
        label = did.pop("label", method.label)
        records.append(
            MethodRecord(
                name=method.name, label=label, source=method.source, arguments=arguments, did=did
            )
        )
        inputs.clock.lap(method.name)
    return records


def _require_same_function(inputs: Inputs, context: MethodContext, method: str) -> None:
    """Check that a graph whose constants a method moved still computes the model's function."""
    with torch.no_grad():
        wanted, got = inputs.reference, context.graph(inputs.captured.example)
    off = float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
    if not off <= MAX_FOLD_DIFF:
        raise CalibrationError(
            f"The method {method} changed what the model computes",
            f"outputs moved by {off:.2e} of their largest value, at most {MAX_FOLD_DIFF:.0e} is "
            "rounding",
            f"Leave --method {method} out, and report this: it is an error of trtq",
        )


def _calibrate(
    inputs: Inputs, spec: QuantizeSpec, graph: fx.GraphModule, placement: Placement, weights: str
) -> tuple[dict[str, ActivationStats], dict[str, str], str]:
    """Return the statistics of every observed activation, their source, and what the cache did."""
    key = CacheKey(
        {
            "weights": weights,
            "graph": digest_of(
                [structure_digest(graph), [[q.name, q.format.bits] for q in placement.quantizers]]
            ),
            "images": inputs.source.digest(inputs.indices),
            "preprocessing": digest_of(msgspec.to_builtins(inputs.preprocess)),
            "calibrator": calibrator_key(spec.calibrator, spec.percentile),
            "version": f"trtq {__version__}, cache {CACHE_VERSION}, torch "
            f"{package_version('torch')}",
        }
    )
    origin = {
        "model": inputs.loaded.name,
        "weights_sha256": inputs.weights_sha256,
        "graph_sha256": key.parts["graph"],
        "images_sha256": key.parts["images"],
        "calibrator": key.parts["calibrator"],
        "placement": "tensorrt",
        "bits": "mixed" if spec.allocation else spec.bits,
    }
    cache = CalibrationCache(
        ensure_writable_dir(cache_folder(spec.calib_cache), option="--calib-cache")
    )
    with cache.lock(key, waiting=inputs.progress.note):
        stats, note = cache.load(key)
        if stats is None:
            inputs.progress.begin(f"Calibrating ({spec.calibrator})", len(inputs.indices))
            images = inputs.images(len(inputs.indices), spec.batch_size)
            seen = observe(
                graph, placement, images, mode=spec.calibrator, progress=inputs.progress.advance
            )
            stats = summarize_all(placement, seen, spec.calibrator, spec.percentile)
            cache.save(key, stats)
    inputs.progress.note(f"calibration cache {note}")
    inputs.clock.lap("calibrate")
    return stats, origin, note
