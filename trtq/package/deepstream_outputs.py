"""Use of a model's outputs by nvinfer, by task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from trtq.errors import UsageError
from trtq.package.consumer import Choices, Files
from trtq.package.contents import Contents, Tensor
from trtq.package.deepstream_config import Value
from trtq.package.deepstream_parsers import NMS, find_parser
from trtq.package.files import labels_text

LABELS = "labels.txt"
DETECTOR, CLASSIFIER, SEGMENTER, OTHER = 0, 1, 2, 100  # network-type
LEAST_SCORE = 0.25  # of boxes, as detectors are deployed


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How nvinfer reads outputs.

    Attributes:
        properties: keys of the group ``property``.
        classes: keys of every class.
        scores: the output whose scores of classes should be probabilities, "" for none.
        files: what is needed beside the model.
        notes: for the user.
    """

    properties: Mapping[str, Value]
    classes: Mapping[str, Value] = field(default_factory=dict)
    scores: str = ""
    files: Files = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_outputs(contents: Contents, choices: Choices) -> Reading:
    """Return how nvinfer reads the outputs.

    Raises:
        UsageError: it cannot; the error says why, and what to do.
    """
    name = contents.task.name if contents.task is not None else ""
    if (choices.parser or choices.parser_library) and name != "detection":
        raise UsageError(
            "--parser has no effect",
            f"it reads boxes, and the task of {contents.path.name} is {name or 'not known'}",
            "Say that it detects: --task detection",
        )
    return BY_TASK.get(name, _others)(contents, choices)


def _others(contents: Contents, choices: Choices) -> Reading:
    """Return the reading of outputs without a meaning for nvinfer: the application gets tensors."""
    del choices
    task = f"task {contents.task_label}" if contents.task is not None else "meaning not known"
    return Reading(
        properties={"network-type": OTHER, "output-tensor-meta": 1},
        notes=(f"the application gets the outputs ({task}) as NvDsInferTensorMeta",),
    )


def _classifier(contents: Contents, choices: Choices) -> Reading:
    del choices
    output = _float_output(contents, rank=2)
    names, notes = _names(contents, output.dims[1])
    # One line an output, names between semicolons.
    text = labels_text([n.replace(";", ",") for n in names], ";").removesuffix(b";")
    return Reading(
        properties={
            "network-type": CLASSIFIER,
            "classifier-threshold": 0.0,
            **_labelled(names),
        },
        scores=output.name if output.dims[1] != 1 else "",
        files={LABELS: text + b"\n"} if names else {},
        notes=notes,
    )


def _segmenter(contents: Contents, choices: Choices) -> Reading:
    del choices
    output = _float_output(contents, rank=4)
    assert contents.preprocess is not None  # nvinfer feeds one image
    size = contents.preprocess.input_size[1:]
    if output.dims[2:] not in (size, (-1, -1)):
        raise UsageError(
            f"Cannot package {contents.path.name} for DeepStream",
            f"nvinfer reads a map of the input's size, {size[0]}x{size[1]}: {output.words}",
            f"Resize the output in the model. {contents.others}",
        )
    names, notes = _names(contents, output.dims[1])
    count, single = len(names) or output.dims[1], output.dims[1] == 1
    # One map is the probability of its class, or its logit: more than one half is the class.
    half = 0.0 if contents.task_label.endswith("logits") else 0.5
    return Reading(
        properties={
            "network-type": SEGMENTER,
            "segmentation-threshold": half if single else 0.0,
            "segmentation-output-order": 0,
            "num-detected-classes": count,
            **_labelled(names),
        },
        scores="" if single else output.name,
        files={LABELS: labels_text(names)} if names else {},
        notes=notes,
    )


def _detector(contents: Contents, choices: Choices) -> Reading:
    detection = contents.detection
    head = detection.head if detection is not None else None
    assert head is not None  # the task is bound
    for name in head.outputs:
        _require_float(contents, next(t for t in contents.outputs if t.name == name))
    parser = find_parser(contents, head, choices)
    count = head.classes or len(contents.classes)
    if not count:
        raise UsageError(
            f"Cannot package {contents.path.name} for DeepStream",
            "the number of classes is not known",
            "Give their names: --labels FILE, one a line",
        )
    names, notes = _names(contents, count)
    suppression = {"nms-iou-threshold": head.overlap} if parser.cluster == NMS else {}
    threshold = f"boxes below a score of {LEAST_SCORE} are left out (pre-cluster-threshold)"
    return Reading(
        properties={
            "network-type": DETECTOR,
            "num-detected-classes": count,
            "cluster-mode": parser.cluster,
            "parse-bbox-func-name": parser.function,
            "custom-lib-path": parser.library,
            **_labelled(names),
        },
        classes={"pre-cluster-threshold": LEAST_SCORE, "topk": head.most, **suppression},
        files={**parser.files, **({LABELS: labels_text(names)} if names else {})},
        notes=(*notes, *filter(None, [parser.note]), threshold),
    )


def _labelled(names: tuple[str, ...]) -> dict[str, Value]:
    return {"labelfile-path": LABELS} if names else {}


def _names(contents: Contents, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of classes, where there are as many as the outputs have; and notes."""
    known = contents.classes
    if not known:
        return (), ("the classes have no names: give --labels FILE for labelfile-path",)
    if count in (-1, len(known)):
        return known, ()
    return (), (f"the {len(known)} names of classes are left out: the outputs have {count}",)


def _float_output(contents: Contents, rank: int) -> Tensor:
    """Return the output that the task reads: the one that it names, else the first.

    Args:
        contents: of the package.
        rank: how many axes nvinfer reads, the batch included.

    Raises:
        UsageError: nvinfer cannot read its type, or it has other axes.
    """
    name = getattr(contents.task, "output", "") or contents.outputs[0].name
    output = next(t for t in contents.outputs if t.name == name)
    _require_float(contents, output)
    if len(output.axes) != rank:
        raise UsageError(
            f"Cannot package {contents.path.name} for DeepStream",
            f"nvinfer reads {rank} axes for the task {contents.task_label}: {output.words}",
            contents.others,
        )
    return output


def _require_float(contents: Contents, output: Tensor) -> None:
    if output.dtype not in ("float32", "int32"):
        raise UsageError(
            f"Cannot package {contents.path.name} for DeepStream",
            f"nvinfer's parsers read float32 and int32: {output.words}",
            "Cast the output in the model",
        )


BY_TASK: Mapping[str, Callable[[Contents, Choices], Reading]] = {
    "classification": _classifier,
    "segmentation": _segmenter,
    "detection": _detector,
}
