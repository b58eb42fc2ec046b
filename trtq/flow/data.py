"""From what a program or a user gives as data to samples of a model's input."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trtq import extensions
from trtq.data.labels import open_labels
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.data.samples import ImageSamples, Samples
from trtq.data.source import open_source
from trtq.data.tensor_samples import samples_of
from trtq.errors import DataError, UsageError
from trtq.flow.model import Model

IGNORE = 255
Note = Callable[[str], None]


def open_samples(
    data: object,
    model: Model | None = None,
    *,
    preprocess: Preprocess | None = None,
    class_index: str | None = None,
    masks: str | None = None,
    ignore_index: int | None = None,
    limit: int | None = None,
    note: Note | None = None,
) -> Samples:
    """Return data as samples.

    Args:
        data: samples, tensors, a list of them, a Dataset, a DataLoader or an iterable; or the text
            of images: a folder of class folders, a flat folder, a .zip, ``cifar10:DIR``; or of a
            data adapter: ``file.py:factory``, ``module:factory`` or an entry point of
            ``trtq.data``, which returns any of the former.
        model: whose preprocessing images get where ``preprocess`` is not given.
        preprocess: how images become inputs; default: the model's, else ImageNet's at the size of
            the model's input, which is noted.
        class_index: the order of classes, for images.
        masks: where the masks of the images are.
        ignore_index: the target value that is not counted; default: 255 for masks, none for data
            of a program.
        limit: keep at most so many samples of data that can be read only once.
        note: receives what a user should read, also while images are decoded.

    Raises:
        UsageError: settings of images for data that are none.
        DataError: no such thing, empty, or samples that do not fit the model.
    """
    text = str(data) if isinstance(data, (str, Path)) else None
    if text is None or _is_extension(text):
        _require_no_images(preprocess, class_index, masks)
        own = data if text is None else extensions.load("data", text)
        given = own() if text is not None and callable(own) else own
        samples = samples_of(given, limit=limit, name=text or "")
        if ignore_index is not None:
            samples.ignore = ignore_index
    else:
        source = open_source(text, class_index, note)
        picture = preprocess or (model.preprocess if model is not None else None)
        picture = picture or _guessed(model, note)
        ignored = IGNORE if ignore_index is None else ignore_index
        samples = ImageSamples(
            source=source,
            picture=picture,
            indices=range(len(source)),
            labels=open_labels(source, masks, picture, ignored),
        )
    if model is not None:
        _require_shape(samples, model)
    return samples


def _require_no_images(
    preprocess: Preprocess | None, class_index: str | None, masks: str | None
) -> None:
    given = {"preprocess": preprocess, "class_index": class_index, "masks": masks}
    wrong = [name for name, value in given.items() if value is not None]
    if wrong:
        raise UsageError(
            f"{' and '.join(wrong)} are for images",
            "these data are inputs of the model already",
            "Leave them out",
        )


def _guessed(model: Model | None, note: Note | None) -> Preprocess:
    """Return ImageNet's preprocessing at the size of a model's input, and say so."""
    size = None if model is None else tuple(model.graph.examples[0].shape[1:])
    picture, notes = resolve_preprocess(input_size=size)  # type: ignore[arg-type]
    for line in notes if note is not None else ():
        note(line)  # type: ignore[misc]
    return picture


def _is_extension(text: str) -> bool:
    """Whether a text names a data adapter: no images are there, and ``data`` extensions are."""
    return (
        not text.startswith("cifar10:")
        and not Path(text).expanduser().exists()
        and extensions.is_known("data", text)
    )


def _require_shape(samples: Samples, model: Model) -> None:
    """Refuse samples whose first one has another shape than the model's input.

    Raises:
        DataError: names both shapes.
    """
    wanted = model.graph.signature.input
    if samples.preprocess is not None:
        shape = list(samples.preprocess.input_size)
    else:
        shape = list(next(samples.batches(1, count=1)).input.shape[1:])
    if shape != list(wanted.shape[1:]):
        raise DataError(
            f"The samples of {samples.name} do not fit {model.name}",
            f"a sample has the shape {shape}, the input is {wanted.words}",
            "Give one sample an item, without a batch axis, as the model takes it",
        )
