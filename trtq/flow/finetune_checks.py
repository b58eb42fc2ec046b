"""What training refuses before it begins, and which layers it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trtq.data.classes import mirrored_pair
from trtq.data.samples import ImageSamples, Samples
from trtq.errors import ArtifactError, CalibrationError, DataError, UsageError
from trtq.flow.classes import require_same_classes
from trtq.flow.model import Model
from trtq.graph.feed import IMAGE_AXES
from trtq.quant.encodings import Encodings
from trtq.quant.formats import BitConfig
from trtq.records.analyze import AnalyzedLayer, AnalyzeRecord
from trtq.specs import FinetuneOptions
from trtq.train.training_graph import TrainingGraph

SEGMENTER_AXES = 4  # of an output
WORST = 0.25


def check_samples(train: Samples, val: Samples | None, options: FinetuneOptions) -> None:
    """Refuse samples that do not serve, before the model is captured.

    Raises:
        UsageError: a setting needs validation samples, or mirrored images would be wrong.
        DataError: targets are missing, or class numbers mean different classes.
    """
    if val is None and (options.patience is not None or options.schedule == "plateau"):
        asked = "--patience" if options.patience is not None else "--schedule plateau"
        raise UsageError(
            f"{asked} needs --val",
            "without it no epoch is better than another",
            "Give labelled images with --val",
        )
    if not train.has_targets and options.distill < 1.0:
        raise DataError(
            f"Cannot train on {train.name}",
            "it has no labels",
            "Give a folder of class folders, --masks, or --distill 1 to learn from the float model",
        )
    if val is not None and not val.has_targets:
        raise DataError(
            f"Cannot measure accuracy on {val.name}",
            "it has no labels",
            "Give a folder of class folders, or --val-masks",
        )
    require_same_classes(train, val)
    _require_no_mirror(train, options.augment)


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
    dense, size = answer.ndim == SEGMENTER_AXES, model.graph.examples[0].shape[2:]
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
    """Note which outputs of several are trained by what."""
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


def require_pictures(model: Model, augment: str) -> None:
    """Refuse augmentation of what is no single image.

    Raises:
        UsageError: names the inputs.
    """
    inputs = model.graph.signature.inputs
    if augment != "none" and (len(inputs) > 1 or len(inputs[0].shape) != IMAGE_AXES):
        raise UsageError(
            f"Cannot augment the samples of {model.name}",
            f"its inputs are {', '.join(i.words for i in inputs)}, not one image",
            "Add --augment none",
        )


def require_trainable(options: FinetuneOptions, graph: TrainingGraph) -> None:
    """Refuse a graph in which nothing learns.

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
    """Note how many validation samples are trained on, under any name."""
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
        f"{len(chosen)} of {len(ranked)} layers train, the worst by {analysis.metric}; the "
        "others stay as they are"
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
    if analysis.model["weights_sha256"] != weights:
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
    return BitConfig(weight=weight.bits, input=16 if given is None else given.bits).label
