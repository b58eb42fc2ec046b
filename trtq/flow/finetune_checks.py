"""Checks before training, and the choice of layers to train."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from trtq.data.answers import HAVE_PREDICTIONS
from trtq.data.classes import mirrored_pair
from trtq.data.samples import ImageSamples, Samples
from trtq.errors import ArtifactError, CalibrationError, DataError, UsageError
from trtq.flow.classes import require_same_classes
from trtq.flow.model import Model
from trtq.flow.run import Run
from trtq.flow.task import fitting_targets
from trtq.graph.device import moved
from trtq.graph.feed import IMAGE_AXES, arrays_of, computed
from trtq.layouts import pixels_of
from trtq.quant.encodings import Encodings
from trtq.quant.formats import HALF, BitConfig
from trtq.records.analyze import AnalyzedLayer, AnalyzeRecord
from trtq.specs import FinetuneOptions
from trtq.tasks import Task, find_task
from trtq.train.training_graph import TrainingGraph

SEGMENTER_AXES = 4  # of an output
WORST = 0.25
FLOATING: tuple[Literal["fp8", "fp4"], ...] = ("fp8", "fp4")  # kinds of formats that are widths


def learns_answers(task: Task | None, train: Samples) -> bool:
    """Whether a model learns from the float model's answers alone, as its task says.

    Args:
        task: that was asked for.
        train: samples with boxes are of a detector.
    """
    return train.boxed if task is None else task.kind not in HAVE_PREDICTIONS


def check_samples(
    train: Samples, val: Samples | None, options: FinetuneOptions, task: Task | None = None
) -> None:
    """Refuse samples that do not serve, before the model is captured.

    Args:
        train: to learn from.
        val: to measure on.
        options: how to train.
        task: what the outputs mean; default: that of the options.

    Raises:
        UsageError: a setting needs validation samples, or mirrored images would be wrong.
        DataError: targets are missing, or class numbers mean different classes.
    """
    if val is None and (options.patience is not None or options.schedule == "plateau"):
        option = "--patience" if options.patience is not None else "--schedule plateau"
        raise UsageError(
            f"{option} needs --val",
            "without it no epoch is better than another",
            "Give labelled images with --val",
        )
    if task is None and options.task is not None:
        task = find_task(options.task)
    if not learns_answers(task, train):
        _require_labels(train, val, options)
    require_same_classes(train, val)
    _require_no_mirror(train, options.augment)


def _require_labels(train: Samples, val: Samples | None, options: FinetuneOptions) -> None:
    """Refuse samples without the labels that training and accuracy need."""
    if not train.has_targets and options.distill < 1.0:
        raise DataError(
            f"Cannot train on {train.name}",
            "it has no labels",
            "Give a folder of class folders, --masks, or --distill 1 to learn from the float "
            "model; --task for outputs that are no classes",
        )
    if val is not None and not val.has_targets:
        raise DataError(
            f"Cannot measure accuracy on {val.name}",
            "it has no labels",
            "Give a folder of class folders, or --val-masks, or say what the outputs mean: --task",
        )


def require_task_options(options: FinetuneOptions, task: Task) -> None:
    """Refuse options of the cross-entropy for a model that learns from answers.

    Args:
        options: how to train.
        task: what the model learns.

    Raises:
        UsageError: names the option.
    """
    for given, option in (
        (options.loss, "--loss"),
        (options.class_weights != "none", "--class-weights"),
    ):
        if given:
            raise UsageError(
                f"Cannot use {option} with the task {task.label}",
                "the model learns from the float model's answers, not from labels",
                f"Leave {option} out; a task of your own may have a loss of its own",
            )


def _require_no_mirror(train: Samples, augment: str) -> None:
    """Refuse mirrored images of classes that a mirror exchanges, such as left and right."""
    if not isinstance(train, ImageSamples) or train.dense or augment == "none":
        return
    pair = mirrored_pair(train.source.classes)
    if pair is not None:
        raise UsageError(
            f"Cannot mirror the images of {train.name}",
            f"a mirrored image of {pair[0]} shows {pair[1]}",
            "Add --augment none",
        )


def require_fit(model: Model, sets: Sequence[Samples]) -> int:
    """Return the number of classes after checking that everything fits; 0 where no targets count.

    Args:
        model: captured.
        sets: the samples whose targets count; those without targets are skipped.

    Raises:
        UsageError: the output is no class scores, or labels and masks do not fit it.
        DataError: labels of classes that the model does not have.
    """
    answer, labelled = model.reference, [s for s in sets if s.has_targets]
    if not labelled:
        return 0
    if answer.ndim not in (2, SEGMENTER_AXES):
        raise UsageError(
            f"Cannot train {model.name} on labels",
            f"its output is {list(answer.shape)}, neither [N, C] nor [N, C, H, W]",
            "Give --distill 1 to learn from the float model",
        )
    dense, size = answer.ndim == SEGMENTER_AXES, pixels_of(model.graph.examples[0].shape)
    for samples in labelled:
        if samples.dense != dense:
            raise UsageError(
                f"Cannot train {model.name} on these targets",
                f"its output is {list(answer.shape)}",
                "Give --masks and --val-masks" if dense else "Leave --masks out",
            )
        if dense and answer.shape[2:] != size:
            raise UsageError(
                f"Cannot train {model.name} on masks",
                f"its output is {list(answer.shape[2:])}, masks are {list(size)}",
                "Let the model bring its answer to the size of its input",
            )
        samples.expect(int(answer.shape[1]), model.name)
    return int(answer.shape[1])


def note_outputs(model: Model, options: FinetuneOptions, note: Callable[[str], None]) -> None:
    """Note which outputs of several are trained by what.

    Args:
        model: captured.
        options: how to train.
        note: receives the lines.
    """
    outputs = [t.name for t in model.graph.signature.outputs]
    whole = [
        name
        for name, answer in zip(outputs, model.answers, strict=True)
        if not answer.is_floating_point()
    ]
    if whole and options.distill:
        note(f"outputs of integers are not distilled: {', '.join(whole)}")
    if len(outputs) > 1 and not options.distill:
        note(
            f"only the output {outputs[0]} is trained: --distill above 0 teaches "
            f"{', '.join(outputs[1:])}, too"
        )


def require_scorable(task: Task, model: Model, val: Samples) -> None:
    """Refuse validation samples whose targets no answer of a model can be compared with.

    Args:
        task: what the answers mean.
        model: captured.
        val: to measure on.

    Raises:
        UsageError: the targets are of another kind, or of other classes.
    """
    if not (task.takes_targets and val.has_targets):
        return
    batch = next(iter(val.select([0]).batches(1)))
    (feed,) = moved([batch.feed(model.input_names)], model.device)
    arrays = arrays_of(computed(model.graph.module, feed))
    names = [t.name for t in model.graph.signature.outputs]
    outputs = dict(zip(names, arrays, strict=True))
    fitting_targets(model.name, task, task.decode(outputs, batch.places), batch, val)


def augment_images(model: Model, options: FinetuneOptions, run: Run) -> FinetuneOptions:
    """Return the options, by default without augmentation where a sample is no single image.

    Args:
        model: captured.
        options: how to train.
        run: receives a note.

    Raises:
        UsageError: another augmentation than the default was asked for; names the inputs.
    """
    inputs = model.graph.signature.inputs
    if options.augment == "none" or (len(inputs) == 1 and len(inputs[0].shape) == IMAGE_AXES):
        return options
    shown = f"its inputs are {', '.join(i.words for i in inputs)}, not one image"
    if options.augment != FinetuneOptions().augment:
        raise UsageError(f"Cannot augment the samples of {model.name}", shown, "Add --augment none")
    run.note(f"the samples of {model.name} are not augmented: {shown}")
    return msgspec.structs.replace(options, augment="none")


def require_trainable(options: FinetuneOptions, graph: TrainingGraph) -> None:
    """Refuse a graph in which nothing learns.

    Args:
        options: how to train.
        graph: with what learns in it.

    Raises:
        CalibrationError: every layer is frozen.
        UsageError: no BatchNorm can be kept.
    """
    if not graph.trained and not graph.ranges:
        raise CalibrationError(
            "Nothing is left to train", "every layer is frozen and ranges do not learn"
        )
    if options.batch_norm == "kept" and not graph.norms:
        raise UsageError(
            "Cannot keep BatchNorms",
            "no trained convolution had one behind it and has weight ranges per channel",
            "Leave --batch-norm kept out",
        )


def note_shared(val: Samples, train: Samples, note: Callable[[str], None]) -> None:
    """Note how many validation samples are trained on, under any name.

    Args:
        val: to measure on.
        train: to learn from.
        note: receives the line.
    """
    known = set(train.contents())
    shared = [i for i, content in enumerate(val.contents()) if content in known]
    if shared:
        note(
            f"{len(shared)} of {len(val)} images of {val.name} are also in {train.name}, such as "
            f"{val.ids[shared[0]]}: accuracy on them is not that of new images"
        )


def worst_layers(
    analysis: AnalyzeRecord, share: float | None, encodings: Encodings, note: Callable[[str], None]
) -> set[str]:
    """Return the names of the layers that an analysis ranks worst at the width they have.

    Args:
        analysis: of this model.
        share: of the layers; None for a quarter.
        encodings: the widths of the layers.
        note: receives what the user should know.
    """
    narrowest, unranked = analysis.bits[0], list[str]()

    def loss(layer: AnalyzedLayer) -> float:
        own = _width(encodings, layer.name)
        if own not in layer.loss:
            unranked.append(str(own))
        return layer.loss.get(own, layer.loss[narrowest])

    ranked = sorted(analysis.layers, key=lambda layer: -loss(layer))
    chosen = ranked[: max(1, round((share or WORST) * len(ranked)))]
    if unranked:
        note(
            f"{len(unranked)} layers have a width that was not analysed ({unranked[0]}): "
            f"ranked at {narrowest}"
        )
    note(
        f"{len(chosen)} of {len(ranked)} layers are trained, the worst by {analysis.metric}; the "
        "others are not changed"
    )
    return {layer.name for layer in chosen}


def require_analysis_of(analysis: AnalyzeRecord, weights: str, name: str) -> None:
    """Refuse an analysis of another model.

    Args:
        analysis: that ranks layers.
        weights: digest of the model's weights.
        name: what to call the analysis.

    Raises:
        ArtifactError: its model has other weights.
    """
    if analysis.model.weights_sha256 != weights:
        raise ArtifactError(
            f"Cannot rank layers by {name}",
            "it is of another model",
            "Analyse this model, with its checkpoint",
        )


def _width(encodings: Encodings, layer: str) -> str:
    """Return the width that a layer has, "None" where its weight is float."""
    weight = encodings.formats.get(f"{layer}.weight")
    given = encodings.formats.get(f"{layer}.input")
    if weight is None:
        return "None"
    return BitConfig(
        weight=weight.bits,
        input=HALF.input if given is None else given.bits,
        floating=next((k for k in FLOATING if k == weight.kind), ""),
        block=weight.block or 0,
    ).label
