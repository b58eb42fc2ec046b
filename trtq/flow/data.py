"""From what a program or a user gives as data to samples of a model's input."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from torch import nn

from trtq.data.adapters import open_data
from trtq.data.image_files import IGNORE
from trtq.data.model_inputs import IMAGE_RANK, InputNeeds
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.data.sample_axes import sample_axes
from trtq.data.samples import INPUT, Samples
from trtq.data.tensor_samples import TensorSamples, samples_of
from trtq.errors import CaptureError, DataError, UsageError
from trtq.flow.model import Model
from trtq.graph.index_ranges import embedding_rows
from trtq.layouts import channels_first, layout_of
from trtq.python_words import python_words

__all__ = [
    "IGNORE",
    "forward_names",
    "needs_of",
    "open_any",
    "open_samples",
    "pixels_explained",
    "samples_from",
]

Note = Callable[[str], None]


@python_words
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
            file, ``coco:FOLDER``, ``yolo:data.yaml``, ``voc:FOLDER``, ``random``,
            ``file.py:factory``, ``module:factory`` or an entry point of ``trtq.data``.
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
        _require_no_images(class_index=class_index, masks=masks)
    opened = open_any(
        data,
        class_index=class_index,
        masks=masks,
        ignore_index=ignore_index,
        tokenizer=tokenizer,
        limit=limit,
        note=note,
    )
    return samples_from(opened, model, preprocess=preprocess, note=note)


def open_any(
    data: object,
    *,
    class_index: str | None = None,
    masks: str | None = None,
    ignore_index: int | None = None,
    tokenizer: str | None = None,
    limit: int | None = None,
    note: Note | None = None,
) -> Data:
    """Return data of a program, or behind a text, opened: as for :func:`open_samples`."""
    if isinstance(data, (str, Path)):
        return open_data(
            Request(
                text=str(data),
                class_index=class_index,
                masks=masks,
                ignore_index=ignore_index,
                tokenizer=tokenizer,
                limit=limit,
                note=note,
            )
        )
    samples = samples_of(data, limit=limit, note=note)
    if ignore_index is not None:
        samples.ignore = ignore_index
    if isinstance(samples, TensorSamples):
        return Data.of_tensors(samples)
    return Data.of_samples(samples)


@contextlib.contextmanager
def pixels_explained(data: Data, example: object) -> Iterator[None]:
    """Say that samples are unscaled pixels where a model cannot be captured on them.

    Args:
        data: whose first samples are the example.
        example: a batch, or batches by input.

    Raises:
        DataError: in place of what the capture said.
    """
    try:
        yield
    except CaptureError as exc:
        named = example if isinstance(example, Mapping) else {INPUT: example}
        for name, value in named.items():
            if is_pixels(value):
                dtype = str(value.dtype).removeprefix("torch.")
                raise DataError(
                    f"Cannot use sample 0 of {data.name}",
                    f"input {name!r} is {dtype}, the model takes float32",
                    "Apply the model's preprocessing first: scale to [0, 1], subtract the mean",
                ) from exc
        raise


def is_pixels(value: object) -> TypeGuard[torch.Tensor]:
    """Whether an example of an input is a batch of images of integers."""
    return (
        isinstance(value, torch.Tensor)
        and not value.is_floating_point()
        and value.ndim > IMAGE_RANK
    )


def forward_names(module: nn.Module | None) -> tuple[str, ...]:
    """Return the parameters of a module's ``forward`` that must be given, in order.

    Args:
        module: not captured; None for a model that is only named.
    """
    if module is None:
        return ()
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    empty = inspect.Parameter.empty
    return tuple(p.name for p in parameters if p.kind in kinds and p.default is empty)


def samples_from(
    data: Data,
    model: Model | None,
    *,
    preprocess: Preprocess | None = None,
    note: Note | None = None,
) -> Samples:
    """Return opened data as samples of a model.

    Args:
        data: opened.
        model: whose inputs the samples become; None where it is not known.
        preprocess: how images become inputs; default: the model's, else ImageNet's at its size.
        note: receives what a user should know.

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
    needs = None if model is None else needs_of(model)
    return data.make(needs, picture)


def _require_sample_axes(model: Model) -> None:
    """Refuse a model with an input that has no axis for samples, such as a table.

    Raises:
        DataError: names the input.
    """
    inputs = model.graph.signature.inputs
    axes = sample_axes([t.shape for t in inputs])
    wrong = next((t for t, axis in zip(inputs, axes, strict=True) if axis is None), None)
    if wrong is not None:
        raise DataError(
            f"Cannot give samples to {model.name}",
            f"its input {wrong.words} has {wrong.shape[0]} in its first axis, and no axis that is "
            "open or 1 for the samples",
            "Wrap the model so that this input has samples first, or is a constant",
        )


def needs_of(model: Model) -> InputNeeds:
    """Return what a captured model takes.

    Args:
        model: captured.

    Raises:
        DataError: an input has no axis for samples.
    """
    signature = model.graph.signature
    examples = model.graph.examples
    module = model.graph.module
    _require_sample_axes(model)
    nodes = [n.name for n in module.graph.nodes if n.op == "placeholder"]
    rows = embedding_rows(module)
    axes = sample_axes([t.shape for t in signature.inputs])
    return InputNeeds(
        model=model.name,
        inputs=signature.inputs,
        ranges=signature.ranges,
        rows={s.name: rows[n] for s, n in zip(signature.inputs, nodes, strict=True) if n in rows},
        sizes={
            s.name: tuple(int(v) for i, v in enumerate(e.shape) if i != axis)
            for s, e, axis in zip(signature.inputs, examples, axes, strict=True)
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
        shape = tuple(int(v) for v in model.graph.examples[0].shape)
        size = channels_first(shape[1:], layout_of(shape) or "NCHW")
    picture, notes = resolve_preprocess(input_size=size)
    for line in notes:
        if note is not None:
            note(line)
    return picture
