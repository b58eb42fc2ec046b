"""From what a program or a user gives as data to samples of a model's input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trtq.data.adapters import open_data
from trtq.data.image_files import IGNORE
from trtq.data.model_inputs import ModelInputs
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.data.samples import Samples
from trtq.data.tensor_samples import samples_of
from trtq.errors import UsageError
from trtq.flow.model import Model
from trtq.graph.index_ranges import embedding_rows

__all__ = ["IGNORE", "needs_of", "open_samples", "samples_from"]

Note = Callable[[str], None]


def open_samples(
    data: object,
    model: Model | None = None,
    *,
    preprocess: Preprocess | None = None,
    class_index: str | None = None,
    masks: str | None = None,
    ignore_index: int | None = None,
    tokenizer: str | None = None,
    limit: int | None = None,
    note: Note | None = None,
) -> Samples:
    """Return data as samples.

    Args:
        data: samples, tensors, a mapping of them by input, a list of samples, a Dataset, a
            DataLoader or an iterable; or a text of the table of data adapters: a folder or a zip of
            images, a folder of ``.npz`` or ``.npy`` files, one such file with samples first, a text
            file, ``coco:FOLDER``, ``yolo:data.yaml``, ``random``, ``file.py:factory``,
            ``module:factory`` or an entry point of ``trtq.data``.
        model: whose inputs the samples become; whose preprocessing images get where ``preprocess``
            is not given.
        preprocess: how images become inputs; default: the model's, else ImageNet's at the size of
            the model's input, which is noted.
        class_index: the order of classes, for images.
        masks: where the masks of the images are.
        ignore_index: the target value that is not counted; default: 255 for masks, none for data
            of a program.
        tokenizer: file of the tokenizer, for a text file.
        limit: keep at most so many samples of data that can be read only once, or draw so many.
        note: receives what a user should read, also while images are decoded.

    Raises:
        UsageError: settings of images for data that are none.
        DataError: no such thing, empty, or samples that do not fit the model.
    """
    if not isinstance(data, (str, Path)):
        _require_no_images(preprocess=preprocess, class_index=class_index, masks=masks)
        samples = samples_of(data, limit=limit, note=note)
        if ignore_index is not None:
            samples.ignore = ignore_index
        return samples if model is None else samples.bound(needs_of(model))
    request = Request(
        text=str(data),
        class_index=class_index,
        masks=masks,
        ignore_index=ignore_index,
        tokenizer=tokenizer,
        limit=limit,
        note=note,
    )
    return samples_from(open_data(request), model, preprocess=preprocess, note=note)


def samples_from(
    data: Data,
    model: Model | None,
    *,
    preprocess: Preprocess | None = None,
    note: Note | None = None,
) -> Samples:
    """Return opened data as samples of a model.

    Raises:
        UsageError: a preprocessing for data that are no images.
        DataError: they do not fit the model.
    """
    picture = preprocess
    if data.source is None:
        _require_no_images(preprocess=preprocess)
    elif picture is None:
        known = None if model is None else model.preprocess
        picture = known or _guessed(model, note)
    return data.make(None if model is None else needs_of(model), picture)


def needs_of(model: Model) -> ModelInputs:
    """Return what a captured model takes."""
    signature = model.graph.signature
    examples = (model.graph.example,)
    module = model.graph.module
    nodes = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    rows = embedding_rows(module)
    return ModelInputs(
        model=model.name,
        inputs=signature.inputs,
        ranges=signature.ranges,
        rows={s.name: rows[n] for s, n in zip(signature.inputs, nodes, strict=True) if n in rows},
        sizes={
            s.name: tuple(int(v) for v in e.shape[1:])
            for s, e in zip(signature.inputs, examples, strict=True)
        },
        signature=signature,
    )


def _require_no_images(**given: object) -> None:
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise UsageError(
            f"{' and '.join(wrong)} are for images",
            "these data are inputs of the model already",
            "Leave them out",
        )


def _guessed(model: Model | None, note: Note | None) -> Preprocess:
    """Return ImageNet's preprocessing at the size of a model's input, and say so."""
    size: tuple[int, int, int] | None = None
    if model is not None:
        channels, height, width = (int(v) for v in model.graph.example.shape[1:])
        size = channels, height, width
    picture, notes = resolve_preprocess(input_size=size)
    for line in notes:
        if note is not None:
            note(line)
    return picture
