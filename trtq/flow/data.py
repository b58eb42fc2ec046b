"""From what a program or a user gives as data to samples of a model's input."""

from __future__ import annotations

from pathlib import Path

from trtq import extensions
from trtq.data.labels import open_labels
from trtq.data.preprocess import Preprocess, resolve_preprocess
from trtq.data.samples import ImageSamples, Samples, samples_of
from trtq.data.source import open_source
from trtq.errors import DataError
from trtq.flow.model import Model

IGNORE = 255


def open_samples(
    data: object,
    model: Model | None = None,
    *,
    preprocess: Preprocess | None = None,
    class_index: str | None = None,
    masks: str | None = None,
    ignore_index: int = IGNORE,
    limit: int | None = None,
) -> Samples:
    """Return data as samples.

    Args:
        data: samples, tensors, a list of them, a Dataset, a DataLoader or an iterable; or the text
            of images: a folder of class folders, a flat folder, a .zip, ``cifar10:DIR``; or of a
            data adapter: ``file.py:factory``, ``module:factory`` or an entry point of
            ``trtq.data``, which returns any of the former.
        model: whose preprocessing images get where ``preprocess`` is not given.
        preprocess: how images become inputs; default: the model's, else ImageNet's at 3x224x224.
        class_index: the order of classes, for images.
        masks: where the masks of the images are.
        ignore_index: the class index of a mask that is not counted.
        limit: keep at most so many samples of data that can be read only once.

    Raises:
        DataError: no such thing, empty, or samples that do not fit the model.
    """
    if not isinstance(data, (str, Path)):
        samples = samples_of(data, limit=limit)
        if model is not None:
            _require_shape(samples, model)
        return samples
    text = str(data)
    if _is_extension(text):
        own = extensions.load("data", text)
        samples = samples_of(own() if callable(own) else own, limit=limit, name=text)
        if model is not None:
            _require_shape(samples, model)
        return samples
    source = open_source(text, class_index)
    picture = preprocess or (model.preprocess if model is not None else None)
    if picture is None:
        size = model.graph.signature.input.shape[1:] if model is not None else None
        picture, _ = resolve_preprocess(input_size=size)  # type: ignore[arg-type]
    return ImageSamples(
        source=source,
        picture=picture,
        indices=range(len(source)),
        labels=open_labels(source, masks, picture, ignore_index),
    )


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
    first = next(samples.batches(1, count=1)).input
    if list(first.shape[1:]) != list(wanted.shape[1:]):
        raise DataError(
            f"The samples of {samples.name} do not fit {model.name}",
            f"a sample has the shape {list(first.shape[1:])}, the input is {wanted.words}",
            "Give one sample an item, without a batch axis, as the model takes it",
        )
