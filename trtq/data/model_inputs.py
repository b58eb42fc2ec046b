"""What a model takes, and how the values of one sample are fitted to it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from trtq.data.sample_axes import sample_axes
from trtq.errors import DataError

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
    """What a model takes.

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
        found = sample_axes([i.shape for i in self.inputs])
        return {i.name: axis or 0 for i, axis in zip(self.inputs, found, strict=True)}

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
            mapping by name, or a pair of a mapping and a target. Structures inside a mapping are
            named by the way to each tensor, such as ``a.x``.
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


def flat(named: Mapping[Any, object]) -> dict[str, object]:
    """Return the values of a mapping, and of mappings and tuples in it, by the way to each.

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
    """Return the parts of a structure of tensors, None for a tensor, an array or numbers."""
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

    Raises:
        ValueError: it is no number or array of numbers.
    """
    try:
        if isinstance(value, np.ndarray):
            value = np.require(_native(value), requirements=["C", "W"])
        return torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as exc:
        kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"is a {kind}, expected a tensor or an array of numbers") from exc


def _native(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return an array with a type that torch computes with: the same values, native byte order."""
    if array.dtype.kind != "u" or array.dtype.itemsize == 1:
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ValueError
    return array.astype(np.int64)


@dataclass(kw_only=True)
class Fitting:
    """Fits the values of samples to what a model takes.

    Attributes:
        name: of the data, for errors.
        needs: what the model takes; None where it is not known yet: values stay as they are.
        note: receives a line for each kind of cast.
    """

    name: str
    needs: InputNeeds | None = None
    note: Note | None = None
    told: set[str] = field(default_factory=set)

    def fit(self, index: int, values: Mapping[str, object]) -> dict[str, torch.Tensor]:
        """Return the inputs of sample ``index`` with the types and shapes that the model takes.

        Raises:
            DataError: names the sample and the input.
        """
        tensors = {n: self._tensor(index, n, v) for n, v in values.items()}
        if self.needs is None:
            return tensors
        sizes: dict[str, tuple[str, int]] = {}
        fitted = {}
        for spec in self.needs.inputs:
            tensor = self._cast(index, spec, tensors[spec.name])
            self._require_shape(index, spec, tensor, sizes)
            self._require_rows(index, spec.name, tensor)
            fitted[spec.name] = tensor
        return fitted

    def refuse(self, index: int, reason: str, hint: str = "") -> DataError:
        """Return the error about one sample."""
        return DataError(f"Cannot use sample {index} of {self.name}", reason, hint)

    def _tensor(self, index: int, name: str, value: object) -> torch.Tensor:
        try:
            return to_tensor(value)
        except ValueError as exc:
            raise self.refuse(index, f"input {name!r} {exc}", _hint_about(value)) from exc

    def _cast(self, index: int, spec: InputSpec, tensor: torch.Tensor) -> torch.Tensor:
        wanted = DTYPES.get(spec.dtype)
        if wanted is None or tensor.dtype == wanted:
            return tensor
        given = str(tensor.dtype).removeprefix("torch.")
        words = f"input {spec.name!r} is {given}, the model takes {spec.dtype}"
        pixels = not tensor.is_floating_point() and tensor.ndim >= IMAGE_RANK
        if wanted.is_floating_point and pixels:
            raise self.refuse(
                index,
                words,
                "Apply the model's preprocessing first: scale to [0, 1], subtract the mean",
            )
        cast = tensor.to(wanted)
        lost = _lost(tensor, cast)
        if lost:
            raise self.refuse(index, f"{words}: {lost}", f"Give {spec.name!r} as {spec.dtype}")
        rounded = tensor.is_floating_point() and cast.is_floating_point()
        verb = "rounded" if rounded and tensor.element_size() > cast.element_size() else "cast"
        self._tell(f"{self.name}: {words}; its values are {verb}")
        return cast

    def _tell(self, line: str) -> None:
        if line not in self.told:
            self.told.add(line)
            if self.note is not None:
                self.note(line)

    def _require_shape(
        self, index: int, spec: InputSpec, tensor: torch.Tensor, sizes: dict[str, tuple[str, int]]
    ) -> None:
        """Refuse a shape that the model does not take; ``sizes`` are the open sizes so far."""
        assert self.needs is not None
        shape = [int(v) for v in tensor.shape]
        wanted = self.needs.sample_shape(spec)
        fixed = [(a, b) for a, b in zip(shape, wanted, strict=False) if isinstance(b, int)]
        if len(shape) != len(wanted) or any(a != b for a, b in fixed):
            raise self.refuse(
                index,
                f"input {spec.name!r} has the shape {shape}, the input is {spec.words}",
                "Give one sample an item, without a batch axis, as the model takes it",
            )
        for size, symbol in zip(shape, wanted, strict=True):
            if isinstance(symbol, str):
                self._require_size(index, spec, symbol, size, sizes)

    def _require_size(
        self,
        index: int,
        spec: InputSpec,
        symbol: str,
        size: int,
        sizes: dict[str, tuple[str, int]],
    ) -> None:
        """Refuse an open size out of its range, or of two values in one sample."""
        assert self.needs is not None
        other, before = sizes.setdefault(symbol, (spec.name, size))
        if before != size:
            raise self.refuse(
                index,
                f"the size {symbol!r} is {before} in {other!r} and {size} in {spec.name!r}",
                "The inputs of one sample must agree",
            )
        sizes_of_axis = self.needs.ranges.get(symbol)
        if sizes_of_axis is not None and size not in sizes_of_axis:
            raise self.refuse(
                index,
                f"{symbol!r} of input {spec.name!r} is {size}, the model takes "
                f"{sizes_of_axis.meaning}",
                "Shorten, pad or resize it",
            )

    def _require_rows(self, index: int, name: str, tensor: torch.Tensor) -> None:
        """Refuse indices that select no row of the embedding behind an input."""
        assert self.needs is not None
        rows = self.needs.rows.get(name)
        if rows is None or not tensor.numel() or tensor.is_floating_point():
            return
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high >= rows:
            raise self.refuse(
                index,
                f"input {name!r} has the index {low if low < 0 else high}, the embedding of the "
                f"model has {rows} rows",
                "Use the tokenizer that the model was trained with",
            )


def _hint_about(value: object) -> str:
    """Return what to do about a value that is no tensor."""
    if isinstance(value, (tuple, list, Mapping)):
        return "Give a sample as a mapping of its tensors by name: {'left': ..., 'right': ...}"
    return "Apply the model's preprocessing first (ToTensor, Normalize)"


def _lost(before: torch.Tensor, after: torch.Tensor) -> str:
    """Return what a cast would lose, "" for nothing but the rounding of floats."""
    if before.is_complex():
        return "complex numbers have no such form"
    if before.is_floating_point() and after.is_floating_point():
        overflow = torch.isfinite(before) & ~torch.isfinite(after)
        if not bool(overflow.any()):
            return ""
        return f"{float(before[overflow][0]):g} is beyond its range"
    differs = after.to(before.dtype) != before
    if not bool(differs.any()):
        return ""
    return f"{before[differs][0].item()} would become {after[differs][0].item()}"
