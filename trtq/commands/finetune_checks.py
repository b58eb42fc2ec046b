"""What training refuses before it begins, and which layers it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from trtq.artifact import read_json
from trtq.data.labels import Labels
from trtq.data.preprocess import Preprocess
from trtq.data.source import Source
from trtq.errors import ArtifactError, CalibrationError, DataError, UsageError
from trtq.known_records import known
from trtq.quant.encodings import Encodings
from trtq.quant.formats import BitConfig
from trtq.records.analyze import AnalyzedLayer, AnalyzeRecord
from trtq.specs import FinetuneSpec
from trtq.train.training_graph import TrainingGraph

SEGMENTER_AXES = 4
WORST = 0.25


def check_request(spec: FinetuneSpec) -> None:
    """Refuse what contradicts itself, before anything is loaded.

    Raises:
        UsageError: names what contradicts what.
    """
    if Path(spec.encodings).resolve().parent == Path(spec.out).resolve():
        raise UsageError(
            f"--out {spec.out} is where the encodings lie",
            "training would overwrite what it starts from",
            "Give another folder",
        )
    if spec.val is None and (spec.patience is not None or spec.schedule == "plateau"):
        asked = "--patience" if spec.patience is not None else "--schedule plateau"
        raise UsageError(
            f"{asked} needs --val",
            "without it no epoch is better than another",
            "Give labelled images with --val",
        )


def require_labels(spec: FinetuneSpec, source: Source) -> None:
    """Refuse images without labels where the loss needs them.

    Raises:
        DataError: names the images.
    """
    if source.labels is None and spec.masks is None and spec.distill < 1.0:
        raise DataError(
            f"Cannot train on {source.name}",
            "it has no labels",
            "Give a folder of class folders, --masks, or --distill 1 to learn from the float model",
        )


def require_fit(
    model: str, answer: torch.Tensor, labels: Sequence[Labels], preprocess: Preprocess
) -> int:
    """Return the number of classes after checking that everything fits.

    Args:
        model: its name, for errors.
        answer: what it gives for an example.
        labels: of the training and validation images.
        preprocess: of both.

    Raises:
        UsageError: the output is no class scores, or labels and masks do not fit it.
        DataError: labels of classes that the model does not have.
    """
    if answer.ndim not in (2, SEGMENTER_AXES):
        raise UsageError(
            f"Cannot train {model}",
            f"its output is {list(answer.shape)}, neither [N, C] nor [N, C, H, W]",
        )
    dense = answer.ndim == SEGMENTER_AXES
    for targets in labels:
        if targets.dense != dense:
            raise UsageError(
                f"Cannot train {model} on these targets",
                f"its output is {list(answer.shape)}",
                "Give --masks and --val-masks" if dense else "Leave --masks out",
            )
        if dense and answer.shape[2:] != torch.Size(preprocess.input_size[1:]):
            raise UsageError(
                f"Cannot train {model} on masks",
                f"its output is {list(answer.shape[2:])}, masks are "
                f"{list(preprocess.input_size[1:])}",
                "Let the model bring its answer to the size of its input",
            )
        targets.expect(answer.shape[1], model)
    return int(answer.shape[1])


def require_trainable(spec: FinetuneSpec, graph: TrainingGraph) -> None:
    """Refuse a graph in which nothing learns.

    Raises:
        CalibrationError: every layer is frozen.
        UsageError: no BatchNorm can be kept.
    """
    if not graph.trained and not graph.ranges:
        raise CalibrationError(
            "Nothing is left to train", "every layer is frozen and ranges do not learn"
        )
    if spec.batch_norm == "kept" and not graph.norms:
        raise UsageError(
            "Cannot keep BatchNorms",
            "no trained convolution had one behind it and has weight ranges per channel",
            "Leave --batch-norm kept out",
        )


def worst_layers(
    spec: FinetuneSpec, encodings: Encodings, weights: str, note: Callable[[str], None]
) -> set[str] | None:
    """Return the layers that an analysis ranks worst at the width they have.

    Args:
        spec: names the analysis, and how many layers train.
        encodings: the widths of the layers.
        weights: digest of the model's weights.
        note: receives what the user should know.

    Returns:
        Names; None without an analysis.

    Raises:
        ArtifactError: the analysis is of another model.
    """
    if spec.sensitivity is None:
        return None
    record = _analysis(Path(spec.sensitivity), weights)
    narrowest, unranked = record.bits[0], list[str]()

    def loss(layer: AnalyzedLayer) -> float:
        own = _width(encodings, layer.name)
        if own not in layer.loss:
            unranked.append(str(own))
        return layer.loss.get(own, layer.loss[narrowest])

    ranked = sorted(record.layers, key=lambda layer: -loss(layer))
    chosen = ranked[: max(1, round((spec.worst or WORST) * len(ranked)))]
    if unranked:
        note(
            f"{len(unranked)} layers have a width that was not analysed ({unranked[0]}): "
            f"ranked at {narrowest}"
        )
    note(
        f"{len(chosen)} of {len(ranked)} layers train, the worst by {record.metric}; the "
        "others stay as they are"
    )
    return {layer.name for layer in chosen}


def _analysis(path: Path, weights: str) -> AnalyzeRecord:
    """Return the record of an analysis of the model with these weights.

    Raises:
        ArtifactError: it is none, or of another model.
    """
    held = read_json(path, kind="analysis")
    record = known(held, path, kind="analysis") if held.get("verb") == "analyze" else None
    if not isinstance(record, AnalyzeRecord) or record.model["weights_sha256"] != weights:
        own = isinstance(record, AnalyzeRecord)
        raise ArtifactError(
            f"Cannot rank layers by {path}",
            "it is of another model" if own else "trtq analyze did not write it",
            "Analyse this model, with its checkpoint",
        )
    return record


def _width(encodings: Encodings, layer: str) -> str:
    """Return the width that a layer has, "None" where its weight is float."""
    weight = encodings.formats.get(f"{layer}.weight")
    given = encodings.formats.get(f"{layer}.input")
    if weight is None:
        return "None"
    return BitConfig(weight=weight.bits, input=16 if given is None else given.bits).label
