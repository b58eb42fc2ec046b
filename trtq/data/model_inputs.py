"""Inputs of a model, and how the values of one sample are fitted to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeGuard

import numpy as np
import numpy.typing as npt
import torch

from trtq.data.sample_axes import sample_axes

Note = Callable[[str], None]
TARGET_KEYS = ("target", "label", "labels", "y")
BESIDE_TARGET = 2  # parts of a pair
IMAGE_RANK = 3  # of one sample: integers of so many axes are pixels, which nobody has scaled yet
DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        "float16",
        "bfloat16",
        "float32",
        "float64",
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "bool",
    )
}


class SizeRange(Protocol):
    """The sizes that an open axis takes."""

    @property
    def least(self) -> int:
        """The smallest."""

    @property
    def most(self) -> int | None:
        """The largest; None is without a limit."""

    @property
    def multiple(self) -> int:
        """Every size is a multiple of it."""

    @property
    def meaning(self) -> str:
        """The range as a person reads it."""

    def __contains__(self, size: object) -> bool:
        """Whether the axis takes a size."""


class InputSpec(Protocol):
    """One input of a model, as its signature describes it."""

    @property
    def name(self) -> str:
        """As in the ONNX file."""

    @property
    def dtype(self) -> str:
        """Such as ``float32``."""

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Sizes, samples first; an open one is a text."""

    @property
    def words(self) -> str:
        """The input as a person reads it."""


@dataclass(frozen=True, kw_only=True)
class InputNeeds:
    """Inputs of a model.

    Attributes:
        model: its name, for errors.
        inputs: in the order of its signature.
        ranges: of the open sizes, by name.
        rows: by the name of an input of indices, the rows of the embedding that they select.
        sizes: by input, the shape of one sample that the model was captured with.
        signature: the signature itself, for a factory that asks for it.
    """

    model: str
    inputs: Sequence[InputSpec]
    ranges: Mapping[str, SizeRange] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    signature: object = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return tuple(i.name for i in self.inputs)

    @cached_property
    def axes(self) -> Mapping[str, int]:
        """The axis of each input that holds samples."""
        axis_per_input = sample_axes([i.shape for i in self.inputs])
        return {i.name: axis or 0 for i, axis in zip(self.inputs, axis_per_input, strict=True)}

    @property
    def one_at_a_time(self) -> bool:
        """Whether the first axis of an input is not that of the samples."""
        return any(self.axes.values())

    def sample_shape(self, spec: InputSpec) -> tuple[int | str, ...]:
        """Return the shape of an input's part of one sample."""
        axis = self.axes[spec.name]
        return spec.shape[:axis] + spec.shape[axis + 1 :]

    def is_open(self, spec: InputSpec) -> bool:
        """Whether samples of an input can have several shapes."""
        return any(isinstance(size, str) for size in self.sample_shape(spec))


def listed_names(names: Iterable[str]) -> str:
    """Return names as a person reads them; ``none`` for no name."""
    return ", ".join(names) or "none"


def split(sample: object, names: Sequence[str] | None) -> tuple[dict[str, object], object]:
    """Return the inputs of a sample by name, and its target or None.

    Args:
        sample: a tensor or array, a tuple of inputs with or without a target behind them, a
            mapping by name, or a pair of a mapping or such a tuple and a target. Structures inside
            a mapping are named by the way to each tensor, such as ``a.x``.
        names: of the model's inputs; None where they are not known: a single input is then called
            ``input``.

    Raises:
        ValueError: a person reads why the parts do not fit.
    """
    if isinstance(sample, Mapping):
        return _split_mapping(flat(sample), names)
    if not isinstance(sample, (tuple, list)):
        sample = (sample,)
    if _is_pair(sample):
        return _split_mapping(flat(sample[0]), names)[0], sample[1]
    wanted = names or ("input",)
    count = len(wanted)
    if len(sample) == BESIDE_TARGET and count > 1 and _is_tuple_of(sample[0], count):
        sample = (*sample[0], sample[1])
    if not count <= len(sample) <= count + 1:
        raise ValueError(
            f"a sample has {len(sample)} parts, expected {count} "
            f"({listed_names(wanted)}) and at most a target"
        )
    target = sample[count] if len(sample) > count else None
    return dict(zip(wanted, sample, strict=False)), target


def _is_pair(sample: Sequence[object]) -> bool:
    """Whether a sample is a mapping of inputs with a target behind it."""
    return len(sample) == BESIDE_TARGET and isinstance(sample[0], Mapping)


def _is_tuple_of(value: object, count: int) -> TypeGuard[Sequence[object]]:
    """Whether a value is a tuple of ``count`` tensors, and no array written as a list."""
    parts = parts_of(value)
    return parts is not None and not isinstance(value, Mapping) and len(parts) == count


def flat(named: Mapping[Any, object]) -> dict[str, object]:
    """Return the values of a mapping, and of mappings and tuples in it, by the way to each.

    Args:
        named: values by key; a list of plain numbers is one value, a list of tensors several.

    >>> flat({"a": {"x": 1, "y": (2, 3)}, "b": [4, 5]})
    {'a.x': 1, 'a.y': (2, 3), 'b': [4, 5]}
    """
    values: dict[str, object] = {}
    for key, value in named.items():
        inner = parts_of(value)
        if inner is None:
            values[str(key)] = value
        else:
            values |= {f"{key}.{k}": v for k, v in flat(inner).items()}
    return values


def parts_of(value: object) -> Mapping[Any, object] | None:
    """Return the parts of a structure of tensors, None for a tensor, an array or numbers.

    Args:
        value: of a sample.

    Returns:
        The parts by key or by position.
    """
    if isinstance(value, Mapping):
        return value
    arrays = (torch.Tensor, np.ndarray, Mapping)
    if isinstance(value, (tuple, list)) and any(isinstance(v, arrays) for v in value):
        return dict(enumerate(value))
    return None


def _split_mapping(
    named: dict[str, object], names: Sequence[str] | None
) -> tuple[dict[str, object], object]:
    """Return inputs and target of a mapping; a key that is an input of the model is no target."""
    own = set(names or ())
    key = next((k for k in TARGET_KEYS if k in named and k not in own), None)
    target = None if key is None else named.pop(key)
    if names is None:
        if not named:
            raise ValueError("a sample has no input, only a target")
        return named, target
    if len(names) == 1 and len(named) == 1:  # one input needs no name
        return dict(zip(names, named.values(), strict=True)), target
    missing = [n for n in names if n not in named]
    extra = [n for n in named if n not in own]
    if missing:
        raise ValueError(f"the input {missing[0]!r} is missing; it has {listed_names(named)}")
    if extra:
        raise ValueError(
            f"{extra[0]!r} is no input of the model, which takes {listed_names(names)}"
        )
    return {n: named[n] for n in names}, target


def to_tensor(value: object) -> torch.Tensor:
    """Return a value as a tensor on the CPU, of the type it has.

    Args:
        value: a tensor on any device, an array in any byte order, a number or a list of numbers;
            unsigned integers of more than 8 bits become int64.

    Raises:
        ValueError: it is no number or array of numbers.
    """
    try:
        if isinstance(value, np.ndarray):
            value = np.require(_native(value), requirements=["C", "W"])
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as exc:
        kind = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else _named(value)
        raise ValueError(f"is {kind}, expected a tensor or an array of numbers") from exc


def _named(value: object) -> str:
    return f"a {type(value).__name__}"


def _native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array with a type that torch computes with: the same values, native byte order."""
    if array.dtype.kind != "u" or array.dtype.itemsize == 1:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError
    return array.astype(np.int64)
