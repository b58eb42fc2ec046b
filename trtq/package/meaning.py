"""Meaning of inputs and outputs, from metadata of a file or a manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from trtq.engine.manifest import EngineManifest
from trtq.errors import UsageError, reason
from trtq.package.contents import IMAGE_RANK, Tensor
from trtq.package.preprocessing import Preprocessing
from trtq.specs.inputs import Picture, PictureSpec
from trtq.tasks import BY_MAKER, Facts, Task, find_task, stored_task
from trtq.typed import convert

BY_ANSWER = {"classes": "classification", "pixels": "segmentation"}  # tasks by the first output
Explained = tuple[Preprocessing | None, Task | None, tuple[str, ...], list[str]]


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Metadata of a file, not yet checked.

    Attributes:
        preprocess: how images become the input.
        task: name of a task.
        answer: what the first output is.
        classes: names in index order.
        signature: inputs, outputs and ranges.
        made_with: what the maker of the first file wrote into its metadata.
    """

    preprocess: Mapping[str, Any] | None = None
    task: str | None = None
    answer: str | None = None
    classes: tuple[str, ...] = ()
    signature: Mapping[str, Any] | None = None
    made_with: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_manifest(cls, manifest: EngineManifest) -> Stored:
        """Return what a manifest says."""
        return cls(
            preprocess=manifest.preprocess,
            task=manifest.task,
            answer=manifest.answer,
            classes=tuple(manifest.classes),
            signature=manifest.signature,
            made_with=manifest.made_with,
        )


@dataclass(frozen=True, kw_only=True)
class Request:
    """Metadata that a user gives beside the file.

    Attributes:
        task: what the outputs mean; None for what the file says.
        labels: file of class names, one a line; None for those of the file.
        picture: how images become the input, by the fields of
            :class:`trtq.specs.inputs.PictureSpec`; None is not said.
    """

    task: str | None = None
    labels: str | None = None
    picture: Picture = field(default_factory=lambda: PictureSpec().picture)


def explain(
    stored: Stored,
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    request: Request,
) -> Explained:
    """Return preprocessing, task, names of classes, and what was left out.

    Args:
        stored: what the file says.
        inputs: of the file.
        outputs: of the file.
        request: what a user says beside the file.

    Returns:
        the preprocessing, None where none fits the one input; the task, bound to the outputs, None
        where none is known or the file's own does not fit; the names of classes in index order;
        notes for the user.

    Raises:
        UsageError: the outputs are not those of the task that was named, the labels cannot be read,
            or the input takes no images of the preprocessing that was given.
    """
    notes: list[str] = []
    if all(v is None for v in request.picture.values()):
        preprocess = _preprocessing(stored.preprocess, inputs, notes)
    else:
        preprocess = _given_preprocessing(stored, inputs, request.picture, notes)
    facts = Facts(
        outputs={t.name: tuple(a or None for a in t.axes) for t in outputs},
        size=_size(inputs, preprocess),
        metadata=stored.made_with,
    )
    labels = request.labels
    classes = _labels(labels) if labels is not None else (stored.classes or facts.names)
    if not facts.names:
        facts = replace(facts, classes=tuple(classes))
    return preprocess, _task(stored, facts, request.task, notes), tuple(classes), notes


def _preprocessing(
    stored: Mapping[str, Any] | None, inputs: Sequence[Tensor], notes: list[str]
) -> Preprocessing | None:
    """Return the stored preprocessing, where it fits the one input."""
    if stored is None:
        return None
    try:
        preprocess = convert(stored, Preprocessing)
    except msgspec.ValidationError as exc:
        notes.append(f"the stored preprocessing cannot be read and is left out: {reason(exc)}")
        return None
    if preprocess.layout != "NCHW":
        notes.append(
            "the stored preprocessing is left out: the model takes images with channels last, "
            "which packages do not prepare"
        )
        return None
    if not _fits(inputs, preprocess):
        shown = "; ".join(t.words for t in inputs)
        notes.append(f"the stored preprocessing is left out: it does not fit {shown}")
        return None
    return preprocess


def _given_preprocessing(
    stored: Stored, inputs: Sequence[Tensor], picture: Picture, notes: list[str]
) -> Preprocessing:
    """Return the preprocessing that a user gives, beside what the file states.

    Raises:
        UsageError: the inputs are not one image with channels first that it fits, or the numbers
            make no sense.
    """
    from trtq.data.stored_preprocess import file_preprocess

    shown = "; ".join(t.words for t in inputs)
    shape = inputs[0].axes if len(inputs) == 1 else ()
    full, lines = file_preprocess(picture, stored.preprocess, shape, stored.made_with)
    preprocess = convert(msgspec.to_builtins(full), Preprocessing)
    if preprocess.layout != "NCHW" or not _fits(inputs, preprocess):
        size = ", ".join(map(str, preprocess.input_size))
        raise UsageError(
            "Cannot prepare images for this model",
            f"its inputs are {shown}, and packages prepare one image [batch, {size}]",
            "Leave the options about images out, or give --input-size as the model has it",
        )
    notes.extend(lines)
    if stored.preprocess is not None:
        notes.append("the preprocessing that the file states was changed by options")
    return preprocess


def _fits(inputs: Sequence[Tensor], preprocess: Preprocessing) -> bool:
    """Return whether the inputs are one image of the size of a preprocessing."""
    dims = inputs[0].dims if len(inputs) == 1 else ()
    return len(dims) == IMAGE_RANK and all(
        d in (-1, size) for d, size in zip(dims[1:], preprocess.input_size, strict=True)
    )


def _size(inputs: Sequence[Tensor], preprocess: Preprocessing | None) -> tuple[int, int] | None:
    """Return height and width of the image input, where they are known."""
    if preprocess is not None:
        return preprocess.input_size[1], preprocess.input_size[2]
    images = [t for t in inputs if len(t.axes) == IMAGE_RANK]
    usual = images[0].usual if len(images) == 1 else None
    return (usual[2], usual[3]) if usual is not None else None


def _labels(file: str) -> list[str]:
    """Return the names in a file, one a line.

    Raises:
        UsageError: it cannot be read, or has no names.
    """
    try:
        lines = Path(file).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"Cannot read --labels {file}", reason(exc)) from exc
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise UsageError(
            f"Cannot use --labels {file}", "it has no names", "Write one name of a class a line"
        )
    return names


def _task(stored: Stored, facts: Facts, chosen: str | None, notes: list[str]) -> Task | None:
    """Return the task that was named, else the file's own where it fits."""
    if chosen is not None:
        return find_task(chosen).bound(facts)
    by_maker = BY_MAKER.get(facts.task or "")
    name = stored_task(stored.task) or BY_ANSWER.get(stored.answer or "") or by_maker
    if name is None:
        return None
    try:
        return find_task(name).bound(facts)
    except UsageError as exc:
        notes.append(f"the task {name} of the file is left out: {exc.message}: {exc.reason}")
        return None
