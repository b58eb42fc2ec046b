"""``trtq analyze``: the loss of each layer at each width, and the cost of each width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from trtq.commands.loading import input_of, open_given, open_model
from trtq.cost.count import LayerCost
from trtq.data.answers import HAVE_PREDICTIONS, Kind
from trtq.data.classes import require_one_class_list
from trtq.data.opened import Data
from trtq.data.samples import Batch, Samples, preprocess_digest
from trtq.errors import DataError, UsageError
from trtq.flow.data import samples_from
from trtq.flow.ptq import cache_folder
from trtq.graph.feed import Feed, first_output
from trtq.graph.nodes import operands
from trtq.graph.signature import input_names
from trtq.progress import Clock, Notes, Progress, Silent
from trtq.quant.formats import BitConfig, read_options
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
    options = _options(spec)
    out = Path(spec.out)
    ensure_writable_file(out)
    ensure_writable_dir(out.parent)
    note = Notes(told.note)
    most = max(spec.calib_images, spec.images)
    data = open_given(spec, note, limit=most)
    _require_targets(spec, data)
    loaded = open_model(spec)
    given = input_of(spec, loaded, data)
    model = given.capture(loaded)
    captured = model.graph
    samples = samples_from(data, model).take(most, spec.seed)
    _require_targets(spec, data, samples)
    _require_scores(spec, model.answer_kind(samples.classes))
    graph, size = captured.module, spec.batch_size if captured.dynamic_batch else 1
    clock.lap("capture")
    told.begin(f"Calibrating ({spec.calibrator})", min(spec.calib_images, len(samples)))
    layers = prepare_layers(
        graph,
        options,
        samples.inputs(spec.calib_images, size, input_names(graph)),
        calibrator=spec.calibrator,
        percentile=spec.percentile,
        progress=told.advance,
    )
    layers, dropped = _complete(layers, [o.label for o in options if o.quantized])
    note(*given.notes, *dropped)
    if not layers:
        raise UsageError(
            f"There is nothing to analyse in {spec.model}",
            "it has no convolution or linear with a constant weight",
        )
    clock.lap("calibrate")
    looked = list(samples.batches(size, count=spec.images))
    names = input_names(graph)
    images: list[Feed] = [batch.feed(names) for batch in looked]
    # Metrics that look at outputs read no targets.
    targets = (
        _targets(spec, samples, looked, images, graph)
        if spec.metric in NEEDS_TARGETS
        else [torch.empty(0)] * len(images)
    )
    weights = model.weights_sha256
    folder = ensure_writable_dir(cache_folder(spec.calib_cache), option="--calib-cache")
    depends = [
        weights,
        samples.digest(),
        [t.tolist() for t in targets],
        preprocess_digest(samples),
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
        data=samples.describe(),
        preprocess=model.preprocess,
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


def _options(spec: AnalyzeSpec) -> list[BitConfig]:
    """Return the widths to measure.

    Raises:
        UsageError: none of them quantizes.
    """
    options = read_options(spec.bits)
    if not any(o.quantized for o in options):
        raise UsageError(
            "There is no width to analyse",
            f"asked for {', '.join(o.label for o in options)}",
            "Give --bits 4 --bits 8",
        )
    return options


def _require_targets(spec: AnalyzeSpec, data: Data, samples: Samples | None = None) -> None:
    """Refuse data without class indices, or with ambiguous ones, for a metric that needs them.

    Args:
        spec: names the metric.
        data: checked now, where they are images.
        samples: checked where the data are none.

    Raises:
        DataError: there are no class indices, or which class they mean is not clear.
    """
    if spec.metric not in NEEDS_TARGETS or spec.targets != "labels":
        return
    if data.source is not None:
        has_targets = data.source.labels is not None
    else:
        has_targets = samples is None or samples.has_targets
    if not has_targets:
        raise DataError(
            f"The metric {spec.metric} needs labels, {data.name} has none",
            "it is not a folder of class folders",
            "Give --targets model to compare with the model's own answer, or use --metric l2 or "
            "jsd",
        )
    if data.source is not None:
        require_one_class_list(data.source)


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
    samples: Samples,
    looked: Sequence[Batch],
    images: Sequence[Feed],
    graph: torch.fx.GraphModule,
) -> list[torch.Tensor]:
    """Return the class of every sample, by batch: its label, or what the model itself says."""
    if spec.targets == "labels":
        samples.expect(_classes(graph, images[0]), spec.model)
        return [_class_indices(samples, batch) for batch in looked]
    with torch.inference_mode():
        return [first_output(graph(*feed)).argmax(dim=1).clone() for feed in images]


def _class_indices(samples: Samples, batch: Batch) -> torch.Tensor:
    """Return the class of every sample of a batch, int64 [N].

    Raises:
        DataError: targets are something else.
    """
    targets = batch.targets()
    if not isinstance(targets, torch.Tensor) or targets.ndim != 1 or targets.is_floating_point():
        raise DataError(
            f"The targets of {samples.name} are no class indices",
            "the metric needs one integer for each sample",
            "Give --targets model, or use --metric l2",
        )
    return targets


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
