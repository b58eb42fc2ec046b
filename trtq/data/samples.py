"""Samples: inputs by name, a target where there is one, an id; read as often as needed.

For all data, a folder of images or a program's own DataLoader, everything behind them sees
:class:`Samples`: countable, repeatable, with a digest of their content.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from trtq.artifact import digest_of
from trtq.data.ahead import ahead
from trtq.data.boxes import Boxes
from trtq.data.image_place import ImagePlace
from trtq.data.labels import Labels
from trtq.data.model_inputs import InputNeeds
from trtq.data.preprocess import Preprocess, read_image
from trtq.data.source import Source, describe
from trtq.errors import DataError
from trtq.layouts import Layout, channels_first, in_layout, layout_of

INPUT = "input"
NOTHING = -100  # no class has this index
TARGETS_AT_ONCE = 64
Note = Callable[[str], None]
Targets = torch.Tensor | Sequence[Boxes] | Sequence[str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Some samples side by side.

    Attributes:
        inputs: by name, of any type, samples first.
        ids: one text a sample.
        targets: reads class indices, int64 [N], or of pixels [N, H, W], or the boxes or
            the text of each sample; None without them.
        places: where each image is in the input; None for samples that are no images.
    """

    inputs: Mapping[str, torch.Tensor]
    ids: Sequence[str]
    targets: Callable[[], Targets]
    places: Sequence[ImagePlace] | None = None

    @property
    def input(self) -> torch.Tensor:
        """The input of a model that has one."""
        (only,) = self.inputs.values()
        return only

    def feed(self, names: Sequence[str]) -> tuple[torch.Tensor, ...]:
        """Return the inputs in the order of ``names``; the only one may have any name.

        Args:
            names: of the model's inputs, in order.

        Raises:
            DataError: one is missing, or there is one more.
        """
        if len(names) == 1 and len(self.inputs) == 1:
            return tuple(self.inputs.values())
        if set(names) != set(self.inputs):
            raise DataError(
                f"Sample {self.ids[0]} does not fit the model",
                f"it has {', '.join(self.inputs)}, the model takes {', '.join(names)}",
                "Name the inputs of each sample as the model does",
            )
        return tuple(self.inputs[n] for n in names)

    def __len__(self) -> int:
        return len(self.ids)


class BoxesByImage(Protocol):
    """The boxes of images by their position in a source."""

    def __getitem__(self, index: int, /) -> Boxes:
        """Return the boxes of one image, in pixels of the upright original."""

    def identity(self) -> str:
        """Return what tells two sets of boxes apart."""


class Samples(ABC):
    """A repeatable list of samples.

    Attributes:
        name: what the data were asked for by.
        ids: one text a sample, stable between runs.
        preprocess: how images became inputs; None for data that are inputs already.
        classes: number of classes of the targets as declared; None where it is not.
        ignore: the target value that is not counted.
        drawn: the inputs are random numbers, which say nothing about real data.
    """

    name: str
    ids: Sequence[str]
    preprocess: Preprocess | None = None
    classes: int | None = None
    ignore: int = NOTHING
    drawn: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    @property
    @abstractmethod
    def has_targets(self) -> bool:
        """Whether samples have targets."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of the targets, in index order; empty where nothing says them."""
        return ()

    @property
    def dense(self) -> bool:
        """Whether every pixel has a target."""
        return False

    @property
    def class_targets(self) -> bool:
        """Whether a program or masks say that each target is a class index."""
        return self.dense

    @property
    def boxed(self) -> bool:
        """Whether targets are boxes."""
        return False

    def bound(self, needs: InputNeeds) -> Samples:
        """Return the samples as the inputs of a model.

        Args:
            needs: what the model takes.

        Raises:
            DataError: they do not fit.
        """
        del needs
        return self

    def expect(self, classes: int, model: str) -> None:
        """Refuse targets of classes that a model does not have, at once or when they are read.

        Args:
            classes: how many the model tells apart.
            model: its name, for the message.

        Raises:
            DataError: names both numbers.
        """
        del classes, model

    @abstractmethod
    def batches(self, size: int, *, count: int | None = None) -> Iterator[Batch]:
        """Yield the first ``count`` samples in batches of at most ``size``.

        Args:
            size: samples in a batch.
            count: how many samples; None for all.

        Raises:
            DataError: a sample is damaged, or differs from what an earlier pass read.
        """

    @abstractmethod
    def contents(self) -> list[str]:
        """Return 16 hex digits for the content of each sample."""

    @abstractmethod
    def digest(self) -> str:
        """Return the SHA-256 over ids and content, in order."""

    @abstractmethod
    def take(self, count: int, seed: int) -> Samples:
        """Return ``count`` samples drawn without replacement, all if there are fewer.

        Args:
            count: how many.
            seed: of the draw; the same seed draws the same samples.
        """

    @abstractmethod
    def select(self, positions: Sequence[int]) -> Samples:
        """Return the samples at some positions, in this order.

        Args:
            positions: from 0, in the order of :attr:`ids`.
        """

    def targets(self) -> Iterator[torch.Tensor]:
        """Yield the targets that are tensors in batches, as :class:`Batch` has them."""
        for batch in self.batches(TARGETS_AT_ONCE) if self.has_targets else ():
            targets = batch.targets()
            if isinstance(targets, torch.Tensor):
                yield targets

    def original(self, sample: str) -> Image.Image | None:
        """Return the upright image of a sample by its id; None for samples that are no images."""
        del sample
        return None

    def targets_identity(self) -> object:
        """Return what tells two sets of targets apart; None without targets."""
        if not self.has_targets:
            return None
        total = hashlib.sha256()
        for batch in self.batches(TARGETS_AT_ONCE):
            targets = batch.targets()
            if isinstance(targets, torch.Tensor):
                total.update(f"{targets.dtype} {list(targets.shape[1:])}\0".encode())
                total.update(bytes_of(targets))
                continue
            for target in targets or ():
                words = f"{target}\0".encode() if isinstance(target, str) else target.content()
                total.update(words)
        return [total.hexdigest(), self.ignore]

    def describe(self) -> dict[str, object]:
        """Return what a record says about the data."""
        facts = {"source": self.name, "images": len(self), "classes": self.classes}
        return {**facts, "random": True} if self.drawn else facts

    def inputs(
        self, count: int, size: int, names: Sequence[str]
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the inputs ``names`` of the first ``count`` samples in batches of ``size``.

        Args:
            count: how many samples.
            size: samples in a batch, at most.
            names: of the model's inputs, in order.
        """
        for batch in self.batches(size, count=count):
            yield batch.feed(names)


@dataclass(kw_only=True)
class ImageSamples(Samples):
    """Images of a source as a model's input.

    Attributes:
        source: the images.
        picture: how an image becomes the input.
        indices: which images, in order.
        labels: their targets; None without them.
        boxes: by position in the source, the objects of an image; None without them.
        input: name of the model's input.
    """

    source: Source
    picture: Preprocess
    indices: Sequence[int]
    labels: Labels | None = None
    boxes: BoxesByImage | None = None
    input: str = INPUT

    def __post_init__(self) -> None:
        self.name = self.source.name
        self.preprocess = self.picture
        self.ids = [self.source.ids[i] for i in self.indices]
        self.classes = len(self.source.classes) or None
        self.ignore = NOTHING if self.labels is None else self.labels.ignore

    @property
    def has_targets(self) -> bool:
        """Whether there are labels, masks or boxes."""
        return self.labels is not None or self.boxed

    @property
    def boxed(self) -> bool:
        """Whether there are boxes."""
        return self.boxes is not None

    def bound(self, needs: InputNeeds) -> ImageSamples:
        """Return the images as the only input of a model.

        Args:
            needs: what the model takes.

        Returns:
            Samples of the same images in the layout of the input, under its name.

        Raises:
            DataError: it takes several inputs, or one of another shape or type.
        """
        if len(needs.inputs) != 1:
            raise DataError(
                f"{self.name} does not fit {needs.model}",
                f"images are one input, the model takes {', '.join(needs.names)}",
                "Give .npz files with these names, or file.py:factory",
            )
        (spec,) = needs.inputs
        layout = layout_of(spec.shape)
        size = in_layout(self.picture.input_size, layout or "NCHW")
        fits = layout is not None and all(
            isinstance(b, str) or a == b for a, b in zip(size, spec.shape[1:], strict=True)
        )
        if layout is None or not fits:
            raise DataError(
                f"The samples of {self.name} do not fit {needs.model}",
                f"a sample has the shape {list(size)}, the input is {spec.words}",
                _hint_of_size(spec.shape, layout),
            )
        if self.picture.dtype != spec.dtype and spec.dtype in ("uint8", "float32"):
            raise DataError(
                f"The samples of {self.name} do not fit {needs.model}",
                f"a sample is {self.picture.dtype}, the input is {spec.words}",
                f"Give --input-dtype {spec.dtype}",
            )
        if layout == "NHWC":
            self.source.tell_once(f"images are given with channels last, as in {spec.words}")
        picture = msgspec.structs.replace(self.picture, layout=layout)
        return replace(self, input=spec.name, picture=picture)

    @property
    def class_names(self) -> tuple[str, ...]:  # noqa: D102
        return tuple(self.source.classes)

    @property
    def dense(self) -> bool:
        """Whether there are masks."""
        return self.labels is not None and self.labels.dense

    def expect(self, classes: int, model: str) -> None:  # noqa: D102
        if self.labels is not None:
            self.labels.expect(classes, model)

    def batches(self, size: int, *, count: int | None = None) -> Iterator[Batch]:  # noqa: D102
        chosen = list(self.indices[:count])
        parts = [chosen[start : start + size] for start in range(0, len(chosen), size)]

        for part, rows in zip(parts, ahead(parts, self._read), strict=True):
            yield Batch(
                inputs={self.input: torch.stack([image for image, _ in rows])},
                ids=[self.source.ids[i] for i in part],
                targets=partial(self._targets, part),
                places=[place for _, place in rows],
            )

    def _read(self, part: Sequence[int]) -> list[tuple[torch.Tensor, ImagePlace]]:
        return [read_image(self.source, i, self.picture) for i in part]

    def _targets(self, part: Sequence[int]) -> Targets:
        if self.boxes is not None:
            return [self.boxes[i] for i in part]
        return None if self.labels is None else self.labels.of(part)

    def contents(self) -> list[str]:  # noqa: D102
        return self.source.short_contents(self.indices)

    def digest(self) -> str:  # noqa: D102
        return self.source.digest(self.indices)

    def take(self, count: int, seed: int) -> ImageSamples:  # noqa: D102
        drawn = self.source.sample(len(self.source), seed)
        own = set(self.indices)
        return replace(self, indices=[i for i in drawn if i in own][:count])

    def select(self, positions: Sequence[int]) -> ImageSamples:  # noqa: D102
        return replace(self, indices=[self.indices[i] for i in positions])

    def targets(self) -> Iterator[torch.Tensor]:  # noqa: D102
        chosen = list(self.indices) if self.labels is not None else []
        for start in range(0, len(chosen), TARGETS_AT_ONCE):
            targets = self._targets(chosen[start : start + TARGETS_AT_ONCE])
            if isinstance(targets, torch.Tensor):
                yield targets

    def original(self, sample: str) -> Image.Image | None:  # noqa: D102
        index = self.source.ids.index(sample)
        return None if self.source.is_array(index) else self.source.image(index)

    def targets_identity(self) -> object:  # noqa: D102
        if self.boxes is not None:
            return self.boxes.identity()
        return None if self.labels is None else self.labels.identity()

    def describe(self) -> dict[str, object]:  # noqa: D102
        return describe(self.source)


def _hint_of_size(shape: Sequence[int | str], layout: Layout | None) -> str:
    """Return what to type where images are of another size than the input."""
    if layout is None:
        return "Give samples that are no images: .npz files, or file.py:factory"
    size = channels_first(shape[1:], layout)
    return f"Give --input-size {'x'.join(map(str, size))}, or samples that are no images"


def target_array(
    targets: torch.Tensor | Sequence[Boxes] | Sequence[str],
) -> npt.NDArray[Any]:
    """Return targets as an array; boxes and texts are objects, one for each sample.

    Args:
        targets: of a batch.

    Returns:
        The tensor as it is; else an array of objects [N].
    """
    if isinstance(targets, torch.Tensor):
        return targets.numpy()
    objects = np.empty(len(targets), dtype=object)
    objects[:] = targets
    return objects


def bytes_of(tensor: torch.Tensor) -> bytes:
    """Return the values of a tensor of any type, as they are in memory.

    Args:
        tensor: on the CPU.
    """
    if not tensor.numel():
        return b""
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def preprocess_digest(samples: Samples) -> str:
    """Return a digest of how images became inputs, for keys of caches."""
    return digest_of(msgspec.to_builtins(samples.preprocess))
