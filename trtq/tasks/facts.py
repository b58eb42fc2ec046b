"""Facts about a model before its answers are seen."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trtq.data.array_files import read_array_file
from trtq.data.metrics import Array
from trtq.errors import UsageError, listed
from trtq.layouts import IMAGE_AXES, layout_of, pixels_of
from trtq.paths import expand_home

Shape = tuple[int | str | None, ...]
LONGEST = 2**20  # characters of metadata that are read as a Python value
SHOWN = 3
SIDES = ("left", "top", "right", "bottom")
LITERALS = ("names", "kpt_shape")  # metadata keys that have Python values
UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)


class HasShape(Protocol):
    """An array or a tensor."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of its axes."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Facts about a model.

    Attributes:
        outputs: their shapes by name in order, samples first; a text or None is an open size.
        size: height and width of the input in pixels; None where it is open.
        metadata: of the ONNX file; ultralytics writes ``names``, ``task`` and ``kpt_shape``.
        classes: names of the classes of the labels, empty where there are none.
        channels_last: the input is an image [N, H, W, C].
        anchors: boxes that the outputs are relative to, in pixels of the input, float32 [A, 4] of
            left, top, right and bottom; None for most models.
    """

    outputs: Mapping[str, Shape]
    size: tuple[int, int] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    channels_last: bool = False
    anchors: Array | None = None

    @classmethod
    def of(
        cls,
        outputs: Mapping[str, HasShape],
        image: HasShape | None,
        metadata: Mapping[str, str],
        classes: tuple[str, ...] = (),
    ) -> Facts:
        """Return what is known of a model by answers to a first batch.

        Args:
            outputs: arrays or tensors by name, samples first.
            image: the batch, [N, C, H, W] or [N, H, W, C]; None where the input is no image.
            metadata: of the ONNX file.
            classes: names of the classes of the labels.
        """
        size = None if image is None else pixels_of(image.shape)
        shapes = {name: tuple(value.shape) for name, value in outputs.items()}
        last = image is not None and layout_of(image.shape) == "NHWC"
        return cls(
            outputs=shapes, size=size, metadata=metadata, classes=classes, channels_last=last
        )

    def is_map_with_channels_last(self, name: str) -> bool:
        """Whether an output is [N, H, W, C], as the input is: of the same proportions.

        Args:
            name: of the output.
        """
        shape = self.outputs[name]
        if not self.channels_last or self.size is None or len(shape) != IMAGE_AXES:
            return False
        height, width = self.size
        _, *sizes = (s if isinstance(s, int) else 0 for s in shape)
        last, first = sizes[0] * width == sizes[1] * height, sizes[1] * width == sizes[2] * height
        return last and not first

    @property
    def task(self) -> str | None:
        """Task of ultralytics for which it was trained: ``detect``, ``segment``, ``pose`` ..."""
        return self.metadata.get("task") or None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the model's classes in index order, empty where they are not known."""
        value = self._literal("names")
        try:
            return tuple(_in_order(value))
        except UNREADABLE:
            return ()

    @cached_property
    def keypoint_shape(self) -> tuple[int, int] | None:
        """How many keypoints an object has, and how many numbers each: 2 or 3."""
        value = self._literal("kpt_shape")
        if not isinstance(value, list | tuple) or [type(v) for v in value] != [int, int]:
            return None
        count, numbers = value
        return (count, numbers) if count > 0 and numbers in (2, 3) else None

    @cached_property
    def is_rt_detr(self) -> bool:
        """Whether the metadata call the model an RT-DETR."""
        description = " ".join(self.metadata.get(k, "") for k in ("head", "description"))
        return "rtdetr" in re.sub("[^a-z]", "", description.lower())

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes in index order: the model's own, else those of the labels."""
        return self.names or self.classes

    @property
    def count(self) -> int | None:
        """How many classes the model has, as its metadata or the labels say."""
        return len(self.class_names) or None

    @property
    def unread(self) -> list[str]:
        """Keys of metadata that have no value of the expected form and are not used."""
        known = {"names": self.names, "kpt_shape": self.keypoint_shape}
        return [k for k in LITERALS if k in self.metadata and not known[k]]

    @property
    def words(self) -> str:
        """The facts, as a person reads them."""
        parts = [f"{n} {shape_words(s)}" for n, s in self.outputs.items()]
        parts.append(
            "input of open size" if self.size is None else "input {}x{}".format(*self.size)
        )
        parts += [f"task {self.task}"] if self.task else []
        parts.append(f"{self.count} classes" if self.count else "number of classes unknown")
        return ", ".join(parts)

    def require_one_class_list(self) -> None:
        """Refuse labels whose classes are not those of the model's metadata.

        Names that only one of them has are accepted, a name with two numbers is not.

        Raises:
            UsageError: names both.
        """
        model, labels = self.names, self.classes
        if not model or not labels:
            return
        if len(model) != len(labels):
            raise UsageError(
                f"The model has {len(model)} classes, the labels have {len(labels)}",
                f"model: {listed(model, SHOWN)}; labels: {listed(labels, SHOWN)}",
                "Give labels of the model's classes",
            )
        known = set(map(_plain, model))
        for at, (ours, theirs) in enumerate(zip(model, labels, strict=True)):
            if _plain(ours) != _plain(theirs) and _plain(theirs) in known:
                raise UsageError(
                    "The classes of the labels are in another order than the model's",
                    f"class {at} is {ours!r} in the model and {theirs!r} in the labels",
                    "Number the classes of the labels as the model does",
                )

    def _literal(self, key: str) -> Any:
        """Return a Python value of the metadata; None where it is missing or cannot be read."""
        text = self.metadata.get(key, "")
        if not text or len(text) > LONGEST:
            return None
        try:
            return ast.literal_eval(text)
        except UNREADABLE:
            return None


def _in_order(names: Any) -> Sequence[str]:
    """Return class names of a list, or of a dict by index.

    Raises:
        ValueError: they are something else, or an index is missing.
    """
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise ValueError("an index is missing")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
        raise ValueError("not names")
    return names


def _plain(name: str) -> str:
    """Return a name as it is compared: without case, spaces and punctuation."""
    return re.sub(r"[\W_]", "", name).casefold() or name


def shape_words(shape: Shape) -> str:
    """Return a shape as text.

    Args:
        shape: an open size is its name or None.

    >>> shape_words(("batch", 15, None))
    '[batch, 15, ?]'
    """
    return f"[{', '.join('?' if s is None else str(s) for s in shape)}]"


def read_anchors(file: str) -> Array:
    """Return the anchors of a ``.npy`` file, float32 [A, 4].

    Args:
        file: path of a ``.npy`` file; ``~`` is the home folder.

    Returns:
        Left, top, right and bottom of each anchor, in pixels of the input.

    Raises:
        DataError: the file cannot be read.
        UsageError: it has no boxes.
    """
    values = read_array_file(Path(expand_home(file, "--task")), file)
    if not isinstance(values, np.ndarray):
        why = "it has several arrays"
    elif values.ndim != 2 or values.shape[1] != len(SIDES) or values.dtype.kind not in "fiu":
        why = f"they are {values.dtype} {list(values.shape)}"
    elif not np.isfinite(values).all() or (values[:, 2:] <= values[:, :2]).any():
        why = "a box has no area, or numbers that are not finite"
    else:
        return np.asarray(values, dtype=np.float32)
    raise UsageError(
        f"Cannot use the anchors of {file}",
        why,
        f"Give a .npy file of numbers [A, 4]: {', '.join(SIDES)} of each in pixels of the input",
    )
