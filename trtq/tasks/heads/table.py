"""The table of heads, and the one that reads the outputs of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trtq.errors import UsageError, suggest
from trtq.tasks.facts import Facts, read_anchors
from trtq.tasks.heads.anchored import Fcos, RetinaNet, Ssd
from trtq.tasks.heads.base import Head
from trtq.tasks.heads.detr import Detr, RfDetr, RtDetr, RtDetrRows
from trtq.tasks.heads.end_to_end import EndToEnd
from trtq.tasks.heads.lists import EfficientNms, Lists, TensorFlow, TorchVision
from trtq.tasks.heads.yolo import Yolo, YoloObjectness, YoloSplit, YoloX
from trtq.tasks.heads.yolo_parts import YoloMasks, YoloObjectnessMasks, YoloPose

ROWS: tuple[type[Head], ...] = (
    Yolo,
    YoloObjectness,
    YoloX,
    YoloSplit,
    YoloMasks,
    YoloObjectnessMasks,
    YoloPose,
    EndToEnd,
    Detr,
    RtDetr,
    RfDetr,
    RtDetrRows,
    EfficientNms,
    TensorFlow,
    Lists,
    TorchVision,
    Ssd,
    RetinaNet,
    Fcos,
)
ROTATED = "obb"  # ultralytics' task of rotated boxes
HEADS: Mapping[str, type[Head]] = {row.name: row for row in ROWS}


def find_head(facts: Facts, head_text: str | None = None) -> Head:
    """Return the head that reads the outputs of a model.

    Args:
        facts: what is known about the model.
        head_text: name of the head, a colon and the file of its anchors if it needs them; None to
            find it from the outputs and the metadata.

    Raises:
        UsageError: none fits, or several, it is unknown, or it has another number of classes.
        DataError: the file of anchors cannot be read.
    """
    facts.require_one_class_list()
    if facts.task == ROTATED:
        raise UsageError(
            "Cannot read rotated boxes",
            f"the metadata of the model say task {ROTATED}: its boxes have an angle; known: "
            f"{facts.words}",
            "Compare its outputs as numbers, --task tensors, or give a task of your own: --task "
            "file.py:task",
        )
    fitting = _fitting(facts) if head_text is None else _of_name(facts, head_text)
    if not fitting:
        raise _none_fits(facts, head_text)
    heads = [h for h in fitting if facts.count in (None, h.classes) or h.classes is None]
    if not heads:
        raise _other_classes(facts, fitting)
    if len(heads) > 1:
        raise _several_fit(facts, heads)
    return heads[0]


def _fitting(facts: Facts) -> list[Head]:
    """Return the heads that fit; names of outputs say more than their shapes."""
    rows = [row for row in ROWS if not row.only_asked]
    heads = [head for row in rows for head in row.fitting(facts, by_name=False)]
    return [h for h in heads if h.by_names] or heads


def _of_name(facts: Facts, head_text: str) -> Sequence[Head]:
    """Return the ways in which a head that was asked for reads the outputs."""
    name, _, file = head_text.partition(":")
    if name not in HEADS:
        raise UsageError(f"There is no head {name!r}", hint=suggest(name, HEADS))
    if file and not HEADS[name].only_asked:
        raise UsageError(
            f"The head {name} has no anchors",
            f"{file} is given for them",
            f"Write --task detection:{name}",
        )
    known = replace(facts, anchors=read_anchors(file)) if file else facts
    return HEADS[name].fitting(known, by_name=True)


def _none_fits(facts: Facts, head_text: str | None) -> UsageError:
    if head_text is not None:
        name = head_text.partition(":")[0]
        return UsageError(
            f"The head {name} cannot read the outputs of the model",
            f"it reads {HEADS[name].summary}; known: {facts.words}",
            "Choose another --task detection:HEAD, or give a task of your own: --task file.py:task",
        )
    return UsageError(
        "No detection head is known that has the outputs of the model",
        f"known: {facts.words}",
        f"Choose one of {', '.join(HEADS)}, as --task detection:{next(iter(HEADS))}; or give a "
        "task of your own: --task file.py:task",
    )


def _other_classes(facts: Facts, heads: Sequence[Head]) -> UsageError:
    owner = "the model's metadata" if facts.names else "the labels"
    return UsageError(
        f"The outputs do not have the {facts.count} classes of {owner}",
        f"{_choices(heads)}; known: {facts.words}",
        "Give labels of the model's classes, or choose another --task detection:HEAD",
    )


def _several_fit(facts: Facts, heads: Sequence[Head]) -> UsageError:
    names = list(dict.fromkeys(h.name for h in heads))
    if len(names) == 1:
        return UsageError(
            f"The head {names[0]} can read the outputs in {len(heads)} ways",
            f"{_choices(heads)}; known: {facts.words}",
            "Keep one of these outputs: --outputs NAME",
        )
    reads = "; ".join(f"{h.name} reads {h.summary}" for h in heads)
    return UsageError(
        "Several detection heads can read the outputs of the model",
        f"{_choices(heads)}; known: {facts.words}; {reads}",
        f"Choose one: {' or '.join(f'--task detection:{n}' for n in names)}",
    )


def _choices(heads: Sequence[Head]) -> str:
    return " or ".join(
        f"{' and '.join(h.outputs)} as {h.name}"
        + ("" if h.classes is None else f" with {h.classes} classes")
        for h in heads
    )
