"""``trtq analyze``: the loss of each layer at each width, and the cost of each width."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
import torch

from trtq.artifact import (
    digest_of,
    ensure_writable_dir,
    ensure_writable_file,
    environment,
    header,
    write_bytes,
    write_json,
)
from trtq.commands.layer_costs import outline
from trtq.commands.loading import open_model, open_preprocess
from trtq.cost.count import LayerCost
from trtq.data.answers import HAVE_PREDICTIONS, Kind
from trtq.data.classes import require_one_class_list
from trtq.data.preprocess import batches
from trtq.data.source import Note, Source, describe, open_source
from trtq.errors import DataError, UsageError
from trtq.flow.model import Model
from trtq.flow.ptq import cache_folder
from trtq.graph.feed import Feed, first_output
from trtq.graph.nodes import operands
from trtq.progress import Clock, Notes, Progress, Silent
from trtq.quant.formats import read_options
from trtq.records.analyze import AnalyzedLayer, AnalyzeRecord
from trtq.search.layers import Layer, groups, prepare_layers
from trtq.search.metrics import IN_PIECES, METRICS, NEEDS_TARGETS
from trtq.search.sensitivity import Sensitivity, SensitivityContext
from trtq.search.work_cache import WorkCache
from trtq.specs import AnalyzeSpec
from trtq.version import __version__
from trtq.workers import Workers


def analyze(spec: AnalyzeSpec, progress: Progress | None = None) -> AnalyzeRecord:
    """Measure the sensitivity of every layer of a model and write it to ``spec.out``.

    Raises:
        TrtqError: any of its branches; what was done of a long metric is kept and taken up by the
            next run.
    """
    told, clock = progress or Silent(), Clock()
    options = read_options(spec.bits)
    if not any(o.quantized for o in options):
        raise UsageError(
            "There is no width to analyse",
            f"asked for {', '.join(o.label for o in options)}",
            "Give --bits 4 --bits 8",
        )
    out = Path(spec.out)
    ensure_writable_file(out)
    ensure_writable_dir(out.parent)
    note = Notes(told.note)
    source = _open_images(spec, note)
    loaded = open_model(spec)
    preprocess, about_input = open_preprocess(spec, loaded)
    model = Model.of(loaded, preprocess)
    captured = model.graph
    _require_scores(spec, model.answer_kind(len(source.classes)))
    graph, size = captured.module, spec.batch_size if captured.dynamic_batch else 1
    clock.lap("capture")
    indices = source.sample(max(spec.calib_images, spec.images), spec.seed)
    ranges, looked = indices[: spec.calib_images], indices[: spec.images]
    told.begin(f"Calibrating ({spec.calibrator})", len(ranges))
    layers = prepare_layers(
        graph,
        options,
        batches(source, ranges, preprocess, size),
        calibrator=spec.calibrator,
        percentile=spec.percentile,
        progress=told.advance,
    )
    layers, dropped = _complete(layers, [o.label for o in options if o.quantized])
    note(*about_input, *dropped)
    if not layers:
        raise UsageError(
            f"There is nothing to analyse in {spec.model}",
            "it has no convolution or linear with a constant weight",
        )
    clock.lap("calibrate")
    images: list[Feed] = [(b,) for b in batches(source, looked, preprocess, size)]
    # Metrics that look at outputs read no targets.
    targets = (
        _targets(spec, source, looked, images, graph)
        if spec.metric in NEEDS_TARGETS
        else [torch.empty(0)] * len(images)
    )
    weights = model.weights_sha256
    folder = ensure_writable_dir(cache_folder(spec.calib_cache), option="--calib-cache")
    depends = [
        weights,
        source.digest(indices),
        source.labels and [source.labels[i] for i in looked],
        msgspec.to_builtins(preprocess),
        _depends(spec),
        str(torch.__version__),
        __version__,
    ]
    workers = Workers.from_environment()
    units = WorkCache(folder, depends, workers)
    if units.found:
        told.note(f"{units.found} pieces of this analysis were done before and are taken up")
    study = SensitivityContext(
        graph=graph,
        layers=layers,
        batches=lambda: list(zip(images, targets, strict=True)),
        units=units,
        begin=told.begin,
        advance=told.advance,
        arguments={
            "probes": spec.probes,
            "trials": spec.trials,
            "epsilon": spec.epsilon,
            "seed": spec.seed,
        },
    )
    if workers.world > 1 and spec.metric in IN_PIECES:
        METRICS[spec.metric](study)  # this process's pieces
        units.collect()
    found, said = METRICS[spec.metric](study)
    clock.lap(spec.metric)
    counted = outline(
        graph,
        captured.examples,
        {layer.name: str(operands(layer.node)[1].target) for layer in layers},
    )
    record = AnalyzeRecord(
        **header("analyze", spec),
        model={"name": loaded.name, "weights": loaded.weights, "weights_sha256": weights},
        data=describe(source),
        preprocess=preprocess,
        metric=spec.metric,
        bits=[o.label for o in options],
        layers=_layers(layers, found, counted.layers),
        left_out=counted.left_out,
        other_bytes=counted.other_bytes,
        kernels=counted.kernels,
        said=said,
        notes=note.lines,
        seconds=clock.seconds,
        environment=environment(),
    )
    if workers.rank:
        return record
    write_json(out, record)
    # matplotlib is slow to import, and only this line needs it.
    from trtq.report.figures import sensitivity_figure

    figure = sensitivity_figure(record.layers, record.bits, spec.metric)
    write_bytes(out.with_suffix(".svg"), figure.encode())
    return record


def _open_images(spec: AnalyzeSpec, note: Note) -> Source:
    """Return the images, once the metric is known to have the labels it needs.

    Raises:
        DataError: there are no labels, or the numbers of classes are ambiguous.
    """
    source = open_source(spec.data, spec.class_index, note)
    if spec.metric not in NEEDS_TARGETS or spec.targets != "labels":
        return source
    if source.labels is None:
        raise DataError(
            f"The metric {spec.metric} needs labels, {source.name} has none",
            "it is not a folder of class folders",
            "Give --targets model to compare with the model's own answer, or use --metric l2 or "
            "jsd",
        )
    require_one_class_list(source)
    return source


def _complete(layers: list[Layer], labels: list[str]) -> tuple[list[Layer], list[str]]:
    """Return the layers that have codes at every width, and a line for each other layer.

    A layer without them stays in float whatever is chosen.
    """
    whole = [layer for layer in layers if set(labels) <= set(layer.codings)]
    kept = {layer.name for layer in whole}
    lines = [
        f"{layer.name} stays in float: outliers leave it no codes at "
        f"{', '.join(o for o in labels if o not in layer.codings)}"
        for layer in layers
        if layer.name not in kept
    ]
    return whole, lines


def _depends(spec: AnalyzeSpec) -> str:
    """Return a digest of the settings that the numbers depend on, without the output path."""
    settings = {
        k: v
        for k, v in msgspec.to_builtins(spec).items()
        if k not in ("out", "calib_cache", "data", "class_index")
    }
    return digest_of(settings)


def _require_scores(spec: AnalyzeSpec, answer: Kind) -> None:
    """Refuse a metric of classes where the output is not known to be their scores.

    Raises:
        UsageError: names the metric.
    """
    if spec.metric in ("jsd", *NEEDS_TARGETS) and answer not in HAVE_PREDICTIONS:
        raise UsageError(
            f"The metric {spec.metric} needs scores of classes",
            "the model's output is not known to be that",
            "Use --metric l2, or give images in as many class folders as the model has classes",
        )


def _targets(
    spec: AnalyzeSpec,
    source: Source,
    indices: list[int],
    images: list[Feed],
    graph: torch.fx.GraphModule,
) -> list[torch.Tensor]:
    """Return the class of every image, by batch: its label, or what the model itself says."""
    if source.labels is not None and spec.targets == "labels":
        labels, batched = torch.tensor([source.labels[i] for i in indices]), []
        for batch in images:
            batched.append(labels[: len(batch)])
            labels = labels[len(batch) :]
        classes = _classes(graph, images[0])
        if int(torch.cat(batched).max()) >= classes:
            raise DataError(
                f"The labels of {source.name} do not fit the model",
                f"it has {len(source.classes)} classes, the model {classes}",
                "Give the folder the model was trained on, or --targets model",
            )
        return batched
    with torch.inference_mode():
        return [first_output(graph(*batch)).argmax(dim=1).clone() for batch in images]


def _classes(graph: torch.fx.GraphModule, batch: Feed) -> int:
    with torch.inference_mode():
        return int(first_output(graph(*(t[:1] for t in batch))).shape[1])


def _layers(
    layers: list[Layer], found: Mapping[str, Sensitivity], counted: Mapping[str, LayerCost]
) -> list[AnalyzedLayer]:
    together = {name: list(names) for names in groups(layers) for name in names}
    return [
        AnalyzedLayer(
            name=layer.name,
            loss=found[layer.name].loss,
            raw=found[layer.name].raw,
            stderr=found[layer.name].stderr,
            group=together[layer.name],
            cost=counted[layer.name],
        )
        for layer in layers
    ]
