"""Description of one input or output, without torch: records and packages read it, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from trtq.typed import convert

SIGNATURE = "signature"  # metadata of an ONNX file


class SizeRange(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes that an open axis takes.

    Attributes:
        least, most: smallest and largest size; None is without a limit.
        multiple: every size is a multiple of it.
    """

    least: int = 1
    most: int | None = None
    multiple: int = 1

    @property
    def words(self) -> str:
        """As it is typed: ``320..1280:32``."""
        step = f":{self.multiple}" if self.multiple > 1 else ""
        return f"{self.least}..{'' if self.most is None else self.most}{step}"

    @property
    def meaning(self) -> str:
        """In words: ``320 to 1280, in multiples of 32``."""
        reach = f"{self.least} or more" if self.most is None else f"{self.least} to {self.most}"
        return reach + (f", in multiples of {self.multiple}" if self.multiple > 1 else "")

    def nearest(self, size: int) -> int:
        """Return the size of the range that is nearest below another, the smallest for none.

        >>> SizeRange(least=100, most=1280, multiple=32).nearest(7)
        128
        """
        first = -(-self.least // self.multiple) * self.multiple
        below = size if self.most is None else min(size, self.most)
        return max(first, below // self.multiple * self.multiple)

    def __contains__(self, size: object) -> bool:
        return (
            isinstance(size, int)
            and self.least <= size
            and (self.most is None or size <= self.most)
            and size % self.multiple == 0
        )


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One named input or output.

    Attributes:
        name: as in the ONNX file.
        dtype: such as ``float32``.
        shape: sizes; an open one is a text such as ``batch``.
        layout: what the axes are, ``NCHW`` or ``NHWC``; "" where that is not known.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: str = ""

    @property
    def words(self) -> str:
        """The tensor as a person reads it: ``input float32 [batch, 3, 224, 224]``."""
        return f"{self.name} {self.dtype} [{', '.join(map(str, self.shape))}]"


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs and outputs of a model.

    Attributes:
        inputs, outputs: in the order of the graph.
        ranges: the sizes of each open axis, by its name; an axis that is missing has no limit.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: dict[str, SizeRange] = {}

    @property
    def input(self) -> TensorSpec:
        """The input of a model that has one.

        Raises:
            ValueError: it has several.
        """
        (only,) = self.inputs
        return only

    @property
    def takes_one_image(self) -> bool:
        """Whether the model takes one batch of images and nothing else."""
        return len(self.inputs) == 1 and bool(self.inputs[0].layout)

    @property
    def words(self) -> str:
        """Inputs and outputs as a person reads them."""
        sides = ("; ".join(t.words for t in side) for side in (self.inputs, self.outputs))
        return " -> ".join(sides)


def stored_signature(stored: Mapping[str, Any] | None) -> Signature | None:
    """Return a stored signature; None without one, and for one of another form."""
    try:
        return convert(stored, Signature) if stored is not None else None
    except msgspec.ValidationError:
        return None
