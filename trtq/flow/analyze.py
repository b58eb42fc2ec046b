"""Measure the loss of each layer of a model at each width, and the cost of each width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from trtq.artifact import SCHEMA, ensure_writable_dir, environment, write_bytes
from trtq.cost.count import LayerCost
from trtq.data.answers import HAVE_PREDICTIONS
from trtq.data.samples import Batch, Samples, preprocess_digest
from trtq.errors import DataError, UsageError
from trtq.flow.classes import require_same_classes
from trtq.flow.layer_costs import outline
from trtq.flow.model import Model, placed, require_float
from trtq.flow.ptq import cache_folder
from trtq.flow.run import Run
from trtq.flow.task import bind_task, by_names
from trtq.graph.device import device_of, with_smaller_batches
from trtq.graph.feed import Feed, first_output, outputs_of
from trtq.graph.nodes import operands
from trtq.graph.signature import results
from trtq.quant.calibrators import AUTO
from trtq.quant.digest import structure_digest
from trtq.quant.formats import BitConfig, read_options
from trtq.records.analyze import AnalyzedLayer, AnalyzedModel, AnalyzeRecord
from trtq.search.layers import Layer, groups, prepare_layers
from trtq.search.metrics import IN_PIECES, METRICS, NEEDS_TARGETS
from trtq.search.sensitivity import (
    Measured,
    MetricArguments,
    Sensitivity,
    SensitivityContext,
    class_loss,
)
from trtq.search.work_cache import WorkCache
from trtq.specs import AnalyzeOptions
from trtq.tasks import Task, find_task
from trtq.version import __version__
from trtq.workers import Workers

Batches = list[tuple[Feed, Feed]]
BY_OUTPUTS = ("jsd", *sorted(NEEDS_TARGETS))  # metrics of what the outputs mean


def analyze_model(
    model: Model,
    samples: Samples,
    options: AnalyzeOptions,
    run: Run | None = None,
    *,
    workers: Workers | None = None,
    task: Task | None = None,
) -> AnalyzeRecord:
    """Measure the sensitivity of every layer.

    Finished parts of a long metric are kept in the calibration cache, and reused by the next call.

    Args:
        model: captured, float32; it is not changed.
        samples: some give the ranges, some are looked at by the metric.
        options: how to analyse.
        run: the listener, the notes and the clock.
        workers: the processes that share the work.
        task: what the outputs mean; default: that of the options, else what is known of the model.

    Raises:
        UsageError: no width to analyse, a metric that does not fit the model, no layer.
        DataError: the metric needs targets, and there are none, or they do not fit the model.
    """
    run, workers = run or Run(), workers or Workers()
    widths = check_analysis(samples, options, task)
    require_float(model.module, model.name, "Give the float file that it was made from")
    learned = _task(model, samples, options, task, run)
    model = placed(model.judged_by(samples), options.device, run)
    if learned is None:
        _require_scores(model, samples, options)
    drawn = samples.take(max(options.calib_images, options.images), options.seed)
    layers = _layers(model, drawn, widths, options, run)
    if learned is None:
        _require_reached(model, layers, options)
    run.clock.lap("calibrate")
    batches = _batches(model, drawn, options, learned)
    context = SensitivityContext(
        graph=model.graph.module,
        layers=layers,
        batches=lambda: batches,
        units=_cache(model, drawn, batches, options, workers, learned),
        begin=run.progress.begin,
        advance=run.progress.advance,
        arguments=MetricArguments(
            probes=options.probes,
            trials=options.trials,
            epsilon=options.epsilon,
            seed=options.seed,
        ),
        one_by_one=not model.graph.dynamic_batch,
    )
    if learned is None and options.targets == "labels":
        context.loss = partial(class_loss, ignored=drawn.ignore)
    if learned is not None:
        outputs = tuple(t.name for t in model.graph.signature.outputs)
        context.loss = partial(by_names, learned.loss, outputs)
        context.divergence = partial(by_names, learned.divergence, outputs)
    sensitivities, figures = _measure(context, options.metric, workers, run)
    run.clock.lap(options.metric)
    weights = {layer.name: str(operands(layer.node)[1].target) for layer in layers}
    counted = outline(model.graph.module, model.graph.examples, weights)
    return AnalyzeRecord(
        schema=SCHEMA,
        verb="analyze",
        spec={"model": model.name, "data": samples.name, **options.without()},
        model=AnalyzedModel(
            name=model.name, weights=model.weights, weights_sha256=model.weights_sha256
        ),
        data=samples.describe(),
        preprocess=model.preprocess or samples.preprocess,
        metric=options.metric,
        bits=[o.label for o in widths],
        layers=_analyzed(layers, sensitivities, counted.layers),
        left_out=counted.left_out,
        other_bytes=counted.other_bytes,
        kernels=counted.kernels,
        said=figures,
        notes=run.note.lines,
        seconds=run.clock.seconds,
        environment=environment(),
    )


def _task(
    model: Model, samples: Samples, options: AnalyzeOptions, task: Task | None, run: Run
) -> Task | None:
    """Return the task that compares all outputs; None for scores of classes, and where unneeded."""
    if options.metric not in BY_OUTPUTS:
        return None
    bound = bind_task(task or options.task, model, samples, run)
    if bound is None or bound.kind in HAVE_PREDICTIONS:
        return None
    if options.metric in NEEDS_TARGETS:
        run.note(f"{bound.label}: the loss is against the float model's own answers")
    return bound


def check_analysis(
    samples: Samples, options: AnalyzeOptions, task: Task | None = None
) -> list[BitConfig]:
    """Return the candidate widths, once they and the targets are known to serve.

    Args:
        samples: whose targets the metric may need.
        options: widths, metric and targets.
        task: what the outputs mean; default: that of the options.

    Returns:
        The widths, narrowest first.

    Raises:
        UsageError: no width to analyse.
        DataError: there are no targets, or the numbers of classes are ambiguous.
    """
    widths = read_options(options.bits)
    if not any(o.quantized for o in widths):
        raise UsageError(
            "There is no width to analyse",
            f"asked for {', '.join(o.label for o in widths)}",
            "Give --bits 4 --bits 8",
        )
    task = task or (find_task(options.task) if options.task else None)
    by_labels = not samples.boxed if task is None else task.kind in HAVE_PREDICTIONS
    if options.metric in NEEDS_TARGETS and options.targets == "labels" and by_labels:
        if not samples.has_targets:
            raise DataError(
                f"The metric {options.metric} needs labels, {samples.name} has none",
                "it is no folder of class folders, and its samples are no pairs",
                "Give --targets model to compare with the model's own answer, or use --metric l2 "
                "or jsd",
            )
        require_same_classes(samples)
    return widths


def _require_scores(model: Model, samples: Samples, options: AnalyzeOptions) -> None:
    """Refuse a metric of classes where the output is not known to be their scores.

    Raises:
        UsageError: names the metric.
    """
    scores = options.task is not None
    known = model.answer_kind(samples.classes, scored=scores) in HAVE_PREDICTIONS
    if options.metric in BY_OUTPUTS and not known:
        raise UsageError(
            f"The metric {options.metric} needs scores of classes",
            "the model's output is not known to be that",
            "Use --metric l2, say what it is (--task), or give labels: class folders, as many as "
            "the model has classes, or pairs of inputs and a class index",
        )


def _require_reached(model: Model, layers: Sequence[Layer], options: AnalyzeOptions) -> None:
    """Refuse a metric of the first output where layers lead to other outputs only.

    Raises:
        UsageError: names such layers.
    """
    if options.metric == "l2":
        return
    first = results(model.graph.module)[0]
    reached = {first}
    for node in reversed(model.graph.module.graph.nodes):
        if node in reached:
            reached.update(node.all_input_nodes)
    beside = [layer.name for layer in layers if layer.node not in reached]
    if beside:
        outputs = [t.name for t in model.graph.signature.outputs]
        raise UsageError(
            f"The metric {options.metric} looks at the output {outputs[0]}",
            f"{len(beside)} layers lead to {', '.join(outputs[1:])} only: {', '.join(beside[:3])}",
            "Use --metric l2, which looks at each layer's own output",
        )


def _layers(
    model: Model, drawn: Samples, widths: list[BitConfig], options: AnalyzeOptions, run: Run
) -> list[Layer]:
    """Return the layers that have codes at every width; the others are noted.

    Raises:
        UsageError: there is none.
    """
    count = min(options.calib_images, len(drawn))
    if options.calibrator == AUTO:
        raise UsageError(
            "Cannot analyze with --calibrator auto",
            "it is for trtq quantize: an analysis compares widths with one calibrator",
            "Give --calibrator mse",
        )

    def prepared(batch: int) -> list[Layer]:
        run.progress.begin(f"Calibrating ({options.calibrator})", count)
        return prepare_layers(
            model.graph.module,
            widths,
            drawn.inputs(count, batch, model.input_names),
            calibrator=options.calibrator,
            percentile=options.percentile,
            progress=run.progress.advance,
        )

    layers = with_smaller_batches(prepared, _size(model, options), run.note, "calibration")
    labels = [o.label for o in widths if o.quantized]
    whole = [layer for layer in layers if set(labels) <= set(layer.codings)]
    for layer in layers:
        if layer not in whole:
            run.note(_no_codes(layer, [o for o in widths if o.quantized]))
    if not whole:
        raise UsageError(
            f"There is nothing to analyse in {model.name}",
            "it has no convolution or linear with a constant weight",
        )
    return whole


def _no_codes(layer: Layer, widths: Sequence[BitConfig]) -> str:
    """Return why a layer that lacks a width is not analysed."""
    lacking = [o for o in widths if o.label not in layer.codings]
    shown = ", ".join(o.label for o in lacking)
    if all(o.in_blocks for o in lacking):
        return (
            f"{layer.name} remains in float: {shown} is for linear layers whose inputs the block "
            "divides (leave it out of --bits to offer this layer others)"
        )
    return f"{layer.name} remains in float: outliers do not allow {shown}"


def _size(model: Model, options: AnalyzeOptions) -> int:
    return options.batch_size if model.graph.dynamic_batch else 1


def _batches(model: Model, drawn: Samples, options: AnalyzeOptions, task: Task | None) -> Batches:
    """Return the inputs that a metric looks at, with their targets, on the device of the graph.

    A metric that looks at outputs reads no targets.

    Raises:
        DataError: targets of classes that the model does not have.
    """
    device = device_of(model.graph.module)
    labelled = options.targets == "labels" and drawn.has_targets
    asks = options.metric in NEEDS_TARGETS
    if asks and labelled and task is None:
        drawn.expect(int(model.reference.shape[1]), model.name)
    batches: Batches = []
    for batch in drawn.batches(_size(model, options), count=options.images):
        feed = tuple(t.to(device) for t in batch.feed(model.input_names))
        wanted: Feed = (torch.empty(0),)
        if asks and task is not None:
            wanted = _own_outputs(model, feed)
        elif asks:
            own = _class_indices(drawn, batch) if labelled else None
            wanted = (own.to(device) if own is not None else _own_answer(model, feed),)
        batches.append((feed, wanted))
    return batches


def _own_outputs(model: Model, feed: Feed) -> Feed:
    """Return all outputs of the model itself."""
    with torch.no_grad():
        return outputs_of(model.graph.module(*feed))


def _class_indices(samples: Samples, batch: Batch) -> torch.Tensor:
    """Return the class of every sample of a batch, int64 [N], or of every pixel [N, H, W].

    Raises:
        DataError: targets are something else.
    """
    targets = batch.targets()
    if not isinstance(targets, torch.Tensor) or targets.is_floating_point():
        raise DataError(
            f"The targets of {samples.name} are no class indices",
            "the metric needs one integer for each sample",
            "Give --targets model, or use --metric l2",
        )
    return targets


def _own_answer(model: Model, feed: Feed) -> torch.Tensor:
    """Return the classes that the model itself says, int64 [N] or [N, H, W]."""
    with torch.inference_mode():
        return first_output(model.graph.module(*feed)).argmax(dim=1).clone()


def _cache(
    model: Model,
    drawn: Samples,
    batches: Batches,
    options: AnalyzeOptions,
    workers: Workers,
    task: Task | None,
) -> WorkCache:
    """Return the pieces of this analysis that are done."""
    folder = ensure_writable_dir(cache_folder(options.calib_cache), option="--calib-cache")
    # what a task compares with follows from the model
    targets: object = task.label if task is not None else [t.cpu().tolist() for _, (t,) in batches]
    if drawn.dense:
        targets = [targets, drawn.ignore]
    depends = [
        model.weights_sha256,
        structure_digest(model.graph.module),
        drawn.digest(),
        targets,
        preprocess_digest(drawn),
        options.without("calib_cache", "device"),
        str(torch.__version__),
        __version__,
    ]
    return WorkCache(folder, depends, workers)


def _measure(context: SensitivityContext, metric: str, workers: Workers, run: Run) -> Measured:
    """Return the result of every layer, and figures about the measurement."""
    if context.units.found:
        run.tell(f"{context.units.found} pieces of this analysis were done before and are taken up")
    if workers.world > 1 and metric in IN_PIECES:
        METRICS[metric](context)  # this process's pieces
        context.units.collect()
    return METRICS[metric](context)


def _analyzed(
    layers: Sequence[Layer],
    sensitivities: Mapping[str, Sensitivity],
    counted: Mapping[str, LayerCost],
) -> list[AnalyzedLayer]:
    together = {name: list(names) for names in groups(layers) for name in names}
    return [
        AnalyzedLayer(
            name=layer.name,
            loss=sensitivities[layer.name].loss,
            raw=sensitivities[layer.name].raw,
            stderr=sensitivities[layer.name].stderr,
            group=together[layer.name],
            cost=counted[layer.name],
        )
        for layer in layers
    ]


def draw_analysis(record: AnalyzeRecord, path: Path) -> None:
    """Draw the losses beside the file of an analysis.

    Args:
        record: the analysis.
        path: of its JSON file; the picture is an ``.svg`` of the same name.
    """
    # matplotlib is slow to import, and only this needs it.
    from trtq.report.figures import sensitivity_figure

    figure = sensitivity_figure(record.layers, record.bits, record.metric)
    write_bytes(path.with_suffix(".svg"), figure.encode())
