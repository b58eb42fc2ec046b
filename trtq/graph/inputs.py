"""Input description for a model that has none of its own: an example, open axes, kept outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from trtq.errors import UsageError, suggest
from trtq.graph.signature import Axes, SizeRange
from trtq.random_values import draw

DTYPES = ("float32", "float16", "uint8", "int32", "int64", "bool")
INTEGERS = 10  # examples of indices are below it
BATCH_OF_TWO = 2


class ModelInputs(NamedTuple):
    """Input description of a model.

    Attributes:
        example: (C, H, W) of one image, or one batch: a tensor, a tuple of arguments or a mapping
            of named ones.
        axes: the sizes of inputs by name, open axes as texts; None: the batch is open.
        ranges: the sizes of open axes, by name.
        outputs: names of the outputs to keep; none: all of them.
        usual_axes: names of the axes of each input, which are tried where ``axes`` is None and the
            model does not say its own: a model may fix some.
    """

    example: object
    axes: Axes | None = None
    ranges: Mapping[str, SizeRange] = {}
    outputs: Sequence[str] = ()
    usual_axes: Sequence[str] = ()


@runtime_checkable
class StatesInputs(Protocol):
    """A module that knows its inputs, such as one that was read from a file."""

    @property
    def input_names(self) -> Sequence[str]:
        """Names of its inputs, in the order of forward()."""

    @property
    def declared_axes(self) -> Axes:
        """The sizes of its inputs by name, open axes as texts."""

    def model_inputs(self, size: tuple[int, int, int] | None) -> ModelInputs:
        """Return its inputs; see :meth:`trtq.reader.module.OnnxModule.model_inputs`.

        Args:
            size: (C, H, W) of images where that is open; None where nobody gave one.
        """

    def fitted(self, given: object, axes: Axes) -> Mapping[str, torch.Tensor]:
        """Return an example of all inputs by name, in their types, of sizes that fit.

        Args:
            given: one batch: a tensor, a tuple in its order, or a mapping.
            axes: sizes by name, open ones as texts, where they are other than its own.
        """

    def about(self) -> list[str]:
        """Return what a user must know of it once it has run."""


def read_inputs(
    texts: Sequence[str], dynamic: Sequence[str], *, seed: int = 0
) -> tuple[dict[str, torch.Tensor], Axes | None, dict[str, SizeRange]]:
    """Return an example of each input, the open axes and their ranges, from what a user typed.

    Args:
        texts: ``NAME=SIZES`` or ``NAME=SIZES:DTYPE``, such as ``ids=1x128:int64``; ``NAME=`` is one
            number, and the default type is float32.
        dynamic: ``NAME=AXIS,AXIS``: each axis a size, the name of an open axis, or a name with its
            range, such as ``images=batch,3,height:320..1280:32,width``.
        seed: of the values.

    Returns:
        Random examples by name; the axes by name, None without ``dynamic``; the ranges by the name
        of the axis, of those that have one.

    Raises:
        UsageError: a text that reads otherwise, an unknown type, an input twice.
    """
    examples: dict[str, torch.Tensor] = {}
    for text in texts:
        name, sizes, dtype = _read_input(text)
        if name in examples:
            raise UsageError(f"The input {name} is given twice", f"the second is {text!r}")
        examples[name] = random_input(sizes, dtype, seed=seed + len(examples))
    if not dynamic:
        return examples, None, {}
    axes: dict[str, list[int | str]] = {}
    ranges: dict[str, SizeRange] = {}
    for text in dynamic:
        name, input_axes, axis_ranges = _read_dynamic(text)
        if examples and name not in examples:
            raise UsageError(
                f"There is no input {name}",
                f"--input names {', '.join(examples)}",
                suggest(name, examples),
            )
        axes[name] = input_axes
        for axis, sizes_of_axis in axis_ranges.items():
            if ranges.setdefault(axis, sizes_of_axis) != sizes_of_axis:
                raise UsageError(
                    f"The axis {axis} has two ranges",
                    f"{ranges[axis].words} and {sizes_of_axis.words}",
                )
    return examples, axes, ranges


def random_input(
    sizes: Sequence[int], dtype: str, *, seed: int = 0, rows: int | None = None
) -> torch.Tensor:
    """Return values of a type: normal floats, bytes, small integers, coins.

    Args:
        sizes: the batch included; none for one number.
        dtype: such as ``float32``.
        seed: of the values.
        rows: integers are below it; default: 10, and all bytes for ``uint8``.
    """
    if rows is None and dtype != "uint8":
        rows = INTEGERS
    values = draw(np.random.default_rng(seed), dtype, sizes, rows=rows, coins=True)
    return torch.from_numpy(values)


def _read_input(text: str) -> tuple[str, list[int], str]:
    match = re.fullmatch(r"([^=]+)=(\d+(?:x\d+)*)?(?::(\w+))?", text)
    if match is None:
        raise UsageError(
            f"Cannot read --input {text}",
            "expected NAME=SIZES or NAME=SIZES:DTYPE",
            "Write it like --input images=1x3x640x640 or --input ids=1x128:int64",
        )
    name, sizes, dtype = match.group(1), match.group(2) or "", match.group(3) or DTYPES[0]
    if dtype not in DTYPES:
        raise UsageError(
            f"Cannot use the type {dtype} for the input {name}",
            f"expected one of {', '.join(DTYPES)}",
            suggest(dtype, DTYPES),
        )
    values = [int(v) for v in sizes.split("x") if v]
    if 0 in values:
        raise UsageError(f"Cannot read --input {text}", "every size must be 1 or more")
    return name, values, dtype


def _read_dynamic(text: str) -> tuple[str, list[int | str], dict[str, SizeRange]]:
    name, equals, rest = text.partition("=")
    axes: list[int | str] = []
    ranges: dict[str, SizeRange] = {}
    for part in rest.split(",") if equals and rest else []:
        if part.isdecimal():
            axes.append(int(part))
            continue
        match = re.fullmatch(r"([A-Za-z_]\w*)(?::(\d+)\.\.(\d+)?(?::(\d+))?)?", part)
        if match is None:
            axes = []
            break
        axis, low, high, step = match.groups()
        axes.append(axis)
        if low is not None:
            ranges[axis] = _range(text, axis, int(low), high, step)
    if not name or not axes:
        raise UsageError(
            f"Cannot read --dynamic {text}",
            "expected NAME=AXIS,AXIS,...: a size, or a name with or without a range",
            "Write it like --dynamic images=batch,3,height:320..1280:32,width:320..1280:32",
        )
    return name, axes, ranges


def _range(text: str, axis: str, low: int, high: str | None, step: str | None) -> SizeRange:
    sizes = SizeRange(least=low, most=None if high is None else int(high), multiple=int(step or 1))
    if low < 1 or sizes.multiple < 1 or (sizes.most is not None and sizes.most < low):
        raise UsageError(
            f"Cannot read --dynamic {text}",
            f"the range of {axis} is {sizes.words}, expected 1 or more, the largest last",
        )
    return sizes
