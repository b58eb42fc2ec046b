"""Fits the values of one sample to what a model takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from trtq.casts import lost_in
from trtq.data.model_inputs import DTYPES, IMAGE_RANK, InputNeeds, InputSpec, to_tensor
from trtq.errors import DataError

Note = Callable[[str], None]


@dataclass(kw_only=True)
class Fitting:
    """Fits the values of samples to what a model takes.

    Attributes:
        name: of the data, for errors.
        needs: what the model takes; None where it is not known yet: values are not changed.
        note: receives a line for each kind of cast.
        told: lines that :attr:`note` has received.
    """

    name: str
    needs: InputNeeds | None = None
    note: Note | None = None
    told: set[str] = field(default_factory=set)

    def fit(self, index: int, values: Mapping[str, object]) -> dict[str, torch.Tensor]:
        """Return the inputs of sample ``index`` with the types and shapes that the model takes.

        Args:
            index: of the sample, for errors.
            values: tensors, arrays or numbers by input, without an axis for samples.

        Returns:
            One tensor for each input of the model, in its order, on the CPU; all values as they are
            where the model is not known. Casts that lose nothing but digits are noted, others are
            refused.

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
        """Return the error about one sample.

        Args:
            index: of the sample.
            reason: why it cannot be used.
            hint: what to do.
        """
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
        if tensor.is_complex():
            raise self.refuse(
                index, f"{words}: complex numbers have no such form", "Give real numbers"
            )
        pixels = not tensor.is_floating_point() and tensor.ndim >= IMAGE_RANK
        if wanted.is_floating_point and pixels:
            raise self.refuse(
                index,
                words,
                "Apply the model's preprocessing first: scale to [0, 1], subtract the mean",
            )
        cast = tensor.to(wanted)
        lost = lost_in(tensor, cast)
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
                _hint_of_shape(shape, wanted),
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


def _hint_of_shape(shape: Sequence[int], wanted: Sequence[int | str]) -> str:
    """Return what to do with a sample of another shape."""

    def fits(sizes: Sequence[int]) -> bool:
        pairs = zip(sizes, wanted, strict=True)
        return all(isinstance(b, str) or a == b for a, b in pairs)

    if len(shape) == len(wanted) == IMAGE_RANK:
        for axes in ((2, 0, 1), (1, 2, 0)):
            if fits([shape[i] for i in axes]):
                return f"Its channels are elsewhere: give array.transpose{axes}"
    return "Give one sample an item, without a batch axis, as the model takes it"


def _hint_about(value: object) -> str:
    """Return what to do about a value that is no tensor."""
    if isinstance(value, (tuple, list, Mapping)):
        return "Give a sample as a mapping of its tensors by name: {'left': ..., 'right': ...}"
    return "Apply the model's preprocessing first (ToTensor, Normalize)"
