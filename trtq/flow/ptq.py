"""One attempt at quantizing a model after training.

Its stages: place, calibrate, apply the methods, simulate, export, compare the two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import msgspec
import onnx
import torch
from torch import fx

from trtq import ops
from trtq.artifact import digest_of, ensure_writable_dir
from trtq.data.samples import preprocess_digest
from trtq.errors import CalibrationError, UsageError
from trtq.export.parity import ParityRecord
from trtq.export.probe import QuantizerStats
from trtq.flow.auto_calibrator import by_calibrator, choose_calibrator, summarize_candidates
from trtq.flow.compare import compare_simulation
from trtq.flow.inputs import Inputs, quantized_metadata
from trtq.flow.model import Model
from trtq.flow.task import by_names
from trtq.graph.device import CPU, choose_device, with_smaller_batches
from trtq.graph.feed import Feed, outputs_of
from trtq.machine import package_version
from trtq.methods.base import Method, MethodContext
from trtq.methods.registry import choose, require_fit
from trtq.paths import path_variable
from trtq.platform.target import Target, check_files
from trtq.quant.cache import CACHE_VERSION, CacheKey, CalibrationCache
from trtq.quant.calibrate import ActivationStats, make_encodings, summarize_all
from trtq.quant.calibrators import AUTO, GATHERED_AS, calibrator_key
from trtq.quant.digest import structure_digest, weights_digest
from trtq.quant.encodings import Encodings
from trtq.quant.formats import BitConfig
from trtq.quant.observe import Range, merge_, observe, sampled_note
from trtq.quant.placement import Placement, place, rules_for
from trtq.quant.simulate import insert_fake_quantize
from trtq.records.quantize import MethodRecord
from trtq.specs import QuantizeOptions
from trtq.tasks import Figure, task_for
from trtq.version import __version__
from trtq.workers import Assisted

MAX_FOLD_DIFF = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A quantized model that was not exported, and how it was made.

    Attributes:
        options: with which it was made.
        graph: in float, after the methods.
        placement: the quantizers.
        encodings: a format and a range for each.
        stats: of activations, by key; empty where encodings were given.
        methods: what each one did.
        cache_note: what the calibration cache did.
    """

    options: QuantizeOptions
    graph: fx.GraphModule
    placement: Placement
    encodings: Encodings
    stats: Mapping[str, ActivationStats]
    methods: list[MethodRecord]
    cache_note: str

    def simulate(self) -> fx.GraphModule:
        """Return the graph with fake-quantize calls."""
        return insert_fake_quantize(self.graph, self.placement, self.encodings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt(Calibration):
    """A quantized model that is not written yet, compared with the float model.

    Attributes:
        qdq: the file.
        parity: the simulation against float and against ONNX Runtime.
        measured: what each quantizer did to its tensor, by name.
        alike: what the task says of its answers against the float model's, without labels; empty
            without a task that compares answers.
    """

    qdq: onnx.ModelProto
    parity: ParityRecord
    measured: dict[str, QuantizerStats]
    alike: tuple[Figure, ...] = ()


def check_options(options: QuantizeOptions, *, allocated: bool = False) -> None:
    """Refuse what contradicts itself, before any work.

    Args:
        options: to check.
        allocated: an allocation that is not read yet has the width of every layer.

    Raises:
        UsageError: names what contradicts what.
    """
    choose(options.method, options.method_arg)
    if options.recipe_quant is not None and options.preset_quant not in ("auto", "none"):
        raise UsageError(
            "Give --preset-quant or --recipe-quant, not both",
            f"--preset-quant {options.preset_quant} and --recipe-quant {options.recipe_quant}",
        )
    calibrator_key(options.calibrator, options.percentile)  # one from outside is loaded now
    widths = [BitConfig.parse(text) for text in (options.bits, *options.layer_bits.values())]
    check_files(options, {w.needs for w in widths if w.quantized} or {"INT8"})
    choose_device(options.device)
    if options.layer_bits and options.bits != "w8a8":
        raise UsageError(
            "Give bits or layer_bits, not both",
            f"bits is {options.bits}, and layer_bits has {len(options.layer_bits)} layers",
        )
    mixed = allocated or bool(options.layer_bits)
    if options.weight_storage == "int4" and not mixed and not options.bits.startswith("w4"):
        raise UsageError(
            "Cannot store weights as INT4",
            f"they have other widths with --bits {options.bits}",
            "Give --bits w4a8 or w4a4",
        )


def attempt(inputs: Inputs, options: QuantizeOptions) -> Attempt:
    """Quantize a copy of the captured graph as ``options`` say, export it, and compare.

    Args:
        inputs: the model and its samples.
        options: how to quantize.

    Raises:
        TrtqError: nothing to quantize, a method that does not fit, a failed calibration or export.
        Assisted: this is not the first of several processes.
    """
    done = calibrate(inputs, options)
    simulated = done.simulate()
    qdq = inputs.export(simulated, options, **quantized_metadata(done.encodings))
    compared = compare_simulation(inputs, options, simulated, qdq)
    own = {f.name: getattr(done, f.name) for f in fields(Calibration)}
    return Attempt(
        **own, qdq=qdq, parity=compared.parity, measured=compared.measured, alike=compared.alike
    )


def calibrate(inputs: Inputs, options: QuantizeOptions) -> Calibration:
    """Quantize a copy of the captured graph as ``options`` say.

    Args:
        inputs: the model and its samples.
        options: how to quantize.

    Raises:
        TrtqError: nothing to quantize, a method that does not fit, a failed calibration.
        Assisted: this is not the first of several processes.
    """
    chosen = choose(options.method, options.method_arg)
    context = method_context(inputs, options)
    for method, _ in chosen:
        require_fit(method, context)
    clock = inputs.run.clock
    clock.lap("place")
    before = _apply(inputs, context, [c for c in chosen if c[0].stage == "before"])
    weights = weights_digest(context.graph) if before else inputs.model.weights_sha256
    stats, origin, cache_note = _statistics(inputs, options, context, weights)
    origin["methods"] = " ".join(m.name for m, _ in chosen)
    encodings = make_encodings(context.graph, context.placement, stats, origin)
    context.encodings = encodings
    clock.lap("encode")
    for method, arguments in chosen:
        if method.finish is not None:
            method.finish(context, arguments)
    after = _apply(inputs, context, [c for c in chosen if c[0].stage == "after"])
    encodings.constants = {**context.folded, **encodings.constants}
    encodings.to_cpu_()
    encodings.round_scales_to_fp16_()
    encodings.origin = {**encodings.origin, "structure_sha256": structure_digest(context.graph)}
    return Calibration(
        options=options,
        graph=context.graph,
        placement=context.placement,
        encodings=encodings,
        stats=stats,
        methods=[*before, *after],
        cache_note=cache_note,
    )


def fitting(
    inputs: Inputs,
    options: QuantizeOptions,
    user_methods: Sequence[str],
    note: Callable[[str], None] | None = None,
) -> QuantizeOptions:
    """Return ``options`` without the methods that have nothing to do on this model.

    Methods in ``user_methods`` remain, and raise later. ``note`` receives a line about each that
    does not.

    Args:
        inputs: the model and its samples.
        options: with the methods of a preset.
        user_methods: methods that a user asked for.
        note: receives the lines; None for none.
    """
    if set(options.method) <= set(user_methods):
        return options
    context = method_context(inputs, options)
    unfit = {
        m.name: reason
        for m, _ in choose(options.method, options.method_arg)
        if m.name not in user_methods and (reason := m.not_applicable_reason(context)) is not None
    }
    for name, reason in unfit.items():
        if note is not None:
            note(f"the preset's method {name} is left out: {reason}")
    return msgspec.structs.replace(
        options, method=tuple(m for m in options.method if m not in unfit)
    )


def method_context(inputs: Inputs, options: QuantizeOptions) -> MethodContext:
    """Return a copy of the captured graph with its quantizers, for the methods.

    Args:
        inputs: the model and its samples.
        options: widths, target, layers in float and the cache folder.

    Raises:
        CalibrationError: there is nothing to quantize.
    """
    captured = inputs.model.graph
    progress = inputs.run.progress
    graph = fx.GraphModule(captured.module, copy.deepcopy(captured.module.graph))
    placement = place(
        graph,
        rules=rules_for(Target.given(options.target)),
        high_precision=options.high_precision,
        bits=BitConfig.parse(options.bits),
        attention=options.attention,
        layer_bits={n: BitConfig.parse(text) for n, text in options.layer_bits.items()},
    )
    if not placement.quantizers:
        raise _nothing_to_quantize(inputs.model.name, graph)
    task = inputs.task or task_for(inputs.answer)
    outputs = tuple(t.name for t in captured.signature.outputs)
    return MethodContext(
        graph=graph,
        placement=placement,
        dynamic_batch=captured.dynamic_batch,
        note=inputs.run.note,
        begin=progress.begin,
        advance=progress.advance,
        resume=ensure_writable_dir(cache_folder(options.calib_cache), option="--calib-cache"),
        images=lambda count: inputs.images(count, options.batch_size),
        time_budget_s=None if options.time_budget is None else 60.0 * options.time_budget,
        divergence=partial(by_names, task.divergence, outputs),
    )


def _nothing_to_quantize(name: str, graph: fx.GraphModule) -> CalibrationError:
    """Return the error about a graph without layers, which may be in nodes that nobody read."""
    what = f"There is nothing to quantize in {name}"
    opaque = sum(ops.of(n).name == "onnx_node" for n in graph.graph.nodes)
    if not opaque:
        return CalibrationError(what, "its graph has no convolution, linear or matmul")
    return CalibrationError(
        what,
        f"its graph has no convolution, linear or matmul outside of {opaque} nodes that ONNX "
        "Runtime computes as they are",
        "Export the model without branches (If, Loop), functions and custom ops around its "
        "layers, or simplify the file for one size (onnxslim)",
    )


def cache_folder(given: str | None) -> Path:
    """Return the folder of the calibration cache.

    It is the one asked for, ``$TRTQ_CALIB_CACHE``, or ``./calib_cache``.

    Args:
        given: the option; None without.
    """
    return Path(given or path_variable("TRTQ_CALIB_CACHE") or "calib_cache")


def _apply(
    inputs: Inputs, context: MethodContext, chosen: list[tuple[Method, msgspec.Struct]]
) -> list[MethodRecord]:
    records, wanted = [], inputs.model.answers
    for method, arguments in chosen:
        did = method.run(context, arguments)
        if method.exact:
            _require_same_function(inputs.model, context, wanted, method.name)
        else:  # what comes next has to keep this
            wanted = _answers(inputs.model, context)
        # On this model the method may run differently than it mostly does.
        label = did.pop("label", method.label)
        records.append(
            MethodRecord(
                name=method.name,
                label=label,
                source=method.source,
                arguments=msgspec.structs.asdict(arguments),
                did=did,
            )
        )
        inputs.run.clock.lap(method.name)
    return records


def _answers(model: Model, context: MethodContext) -> Feed:
    """Return what the graph gives for the example that the model was captured on."""
    with torch.no_grad():
        return outputs_of(context.graph(*model.graph.examples))


def _require_same_function(model: Model, context: MethodContext, wanted: Feed, method: str) -> None:
    """Check that a graph whose constants a method moved still computes what it did before.

    Args:
        model: that was captured.
        context: the graph after the method.
        wanted: its answers before the method.
        method: its name.

    Raises:
        CalibrationError: the answers moved.
    """
    off = max(
        float((g.double() - w.double()).abs().max() / w.double().abs().max().clamp_min(1e-30))
        for g, w in zip(_answers(model, context), wanted, strict=True)
    )
    if not off <= MAX_FOLD_DIFF:
        raise CalibrationError(
            f"The method {method} changed what the model computes",
            f"outputs moved by {off:.2e} of their largest value, at most {MAX_FOLD_DIFF:.0e} is "
            "rounding",
            f"Leave --method {method} out, and report this: it is an error of trtq",
        )


def _observed(inputs: Inputs, options: QuantizeOptions, context: MethodContext) -> dict[str, Range]:
    """Return what every activation was seen to do on all samples.

    With several processes each observes a run of the samples; all return the same.
    """
    workers, progress = inputs.workers, inputs.run.progress
    mode = GATHERED_AS if options.calibrator == AUTO else options.calibrator
    rows, share = workers.run_of(len(inputs.samples)), inputs
    if workers.world > 1:
        share = replace(inputs, samples=inputs.samples.select(rows))
        inputs.run.note(f"{workers.world} processes calibrate, each on its share of the samples")

    def observed(batch: int) -> dict[str, Range]:
        progress.begin(f"Calibrating ({options.calibrator})", len(rows))
        return observe(
            context.graph,
            context.placement,
            share.images(len(rows), batch),
            mode=mode,
            progress=progress.advance,
            before=rows.start,
        )

    seen = with_smaller_batches(observed, options.batch_size, inputs.run.note, "calibration")
    if workers.world > 1:
        merge_(seen, workers)
    return seen


def _statistics(
    inputs: Inputs, options: QuantizeOptions, context: MethodContext, weights: str
) -> tuple[dict[str, ActivationStats], dict[str, str], str]:
    """Return the statistics of every observed activation, their source, and what the cache did."""
    graph, placement, samples = context.graph, context.placement, inputs.samples
    device = inputs.model.device
    elsewhere = {} if device == CPU else {"device": device.type}  # sums have another order there
    widths = [[q.name, q.format.bits] for q in placement.quantizers]
    key = CacheKey(
        {
            "weights": weights,
            "graph": digest_of([structure_digest(graph), widths]),
            "images": samples.digest(),
            "preprocessing": preprocess_digest(samples),
            "calibrator": calibrator_key(options.calibrator, options.percentile),
            "version": f"trtq {__version__}, cache {CACHE_VERSION}, torch "
            f"{package_version('torch')}",
            **elsewhere,
        }
    )
    origin = {
        "model": inputs.model.name,
        "weights_sha256": inputs.model.weights_sha256,
        "graph_sha256": key.parts["graph"],
        "images_sha256": key.parts["images"],
        "calibrator": key.parts["calibrator"],
        "placement": "tensorrt",
        "bits": "mixed" if options.layer_bits else options.bits,
        **elsewhere,
    }
    folder = ensure_writable_dir(cache_folder(options.calib_cache), option="--calib-cache")
    cache, progress = CalibrationCache(folder), inputs.run.progress
    automatic, workers = options.calibrator == AUTO, inputs.workers
    with cache.lock(key, waiting=progress.note) if workers.rank == 0 else nullcontext():
        stats, note = cache.load(key) if workers.rank == 0 else (None, "")
        missing = torch.tensor(int(workers.rank == 0 and stats is None), device=device)
        seen = _observed(inputs, options, context) if workers.sum_(missing) else {}
        if workers.rank:
            raise Assisted
        if stats is None:
            stats = (
                summarize_candidates(placement, seen, options.percentile)
                if automatic
                else summarize_all(placement, seen, options.calibrator, options.percentile)
            )
            cache.save(key, stats)
    progress.note(f"calibration cache {note}")
    if sampled := sampled_note(placement):
        inputs.run.note(sampled)
    if automatic:
        stats_by_calibrator = by_calibrator(stats)
        choice = choose_calibrator(inputs, context, stats_by_calibrator)
        inputs.run.note(choice.words)
        stats, origin["calibrator"] = stats_by_calibrator[choice.name], f"{AUTO}: {choice.name}"
    inputs.run.clock.lap("calibrate")
    return stats, origin, note
