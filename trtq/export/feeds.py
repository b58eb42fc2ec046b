"""Feeds of a runner: arrays by the names of a model's inputs, checked before they run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trtq.errors import UsageError, suggest

AnyArray = npt.NDArray[Any]
Inputs = Mapping[str, AnyArray]
# One array for a model of one input, arrays in the order of the inputs, or arrays by name.
Given = AnyArray | Sequence[AnyArray] | Inputs


class InputSlot(NamedTuple):
    """One input of a model that can be run.

    Attributes:
        name: as in the file.
        dtype: of NumPy, such as ``float32``.
        shape: sizes; None where it is open.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @property
    def words(self) -> str:
        """The input as a person reads it: ``images float32 [?, 3, 640, 640]``."""
        sizes = ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name} {self.dtype} [{sizes}]"


def feed_for(slots: Sequence[InputSlot], given: Given, label: str) -> dict[str, AnyArray]:
    """Return the arrays by name, in the order and with the dtypes of a model's inputs.

    Args:
        slots: the model's inputs.
        given: arrays by name or in order; one array alone, or of any name, for a model of one
            input.
        label: what runs, for errors.

    Raises:
        UsageError: an input is missing or unknown, or has a dtype whose values the model's cannot
            hold.
    """
    arrays = _by_name(slots, given, label)
    missing = [s.name for s in slots if s.name not in arrays]
    known = [s.name for s in slots]
    extra = [n for n in arrays if n not in known]
    if missing or extra:
        parts = [f"{n} is missing" for n in missing] + [f"it has no {n}" for n in extra]
        raise UsageError(
            f"Cannot run the {label}",
            f"{'; '.join(parts)}; its inputs are {_list(slots)}",
            suggest(extra[0], known) if extra else f"Give {', '.join(missing)}",
        )
    return {s.name: _fitted(s, np.asarray(arrays[s.name]), label) for s in slots}


def _by_name(slots: Sequence[InputSlot], given: Given, label: str) -> Inputs:
    if isinstance(given, Mapping):
        alone = len(slots) == 1 and len(given) == 1
        return {slots[0].name: next(iter(given.values()))} if alone else given
    if not isinstance(given, np.ndarray):
        given = list(given)
        if len(given) == len(slots):
            return {s.name: a for s, a in zip(slots, given, strict=True)}
        raise UsageError(
            f"Cannot run the {label} on {len(given)} arrays",
            f"it has {len(slots)} inputs: {_list(slots)}",
        )
    if len(slots) != 1:
        raise UsageError(
            f"Cannot run the {label} on one array",
            f"it has {len(slots)} inputs: {_list(slots)}",
            f"Give a mapping: {{{', '.join(f'{s.name!r}: ...' for s in slots)}}}",
        )
    return {slots[0].name: given}


def _list(slots: Sequence[InputSlot]) -> str:
    return "; ".join(s.words for s in slots) or "none"


def _fitted(slot: InputSlot, array: AnyArray, label: str) -> AnyArray:
    """Return one array with the dtype of its input.

    Float types become each other; everything else must keep its values.
    """
    if array.dtype.name == slot.dtype:
        return array
    wanted = np.dtype(slot.dtype)
    if array.dtype.kind == "f" and wanted.kind == "f":
        return array.astype(wanted)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(wanted) if array.dtype.kind in "fiub" else None
    if cast is None or not np.array_equal(cast.astype(array.dtype), array):
        raise UsageError(
            f"Cannot run the {label}",
            f"the input {slot.name} is {slot.dtype}, the array is {array.dtype.name} and would "
            "lose values",
            f"Give {slot.dtype}",
        )
    return cast


def count_of(given: Given) -> int:
    """Return how many samples a batch has: the first axis of the first input that has axes.

    It is 1 for several inputs of which none has an axis.
    """
    if isinstance(given, np.ndarray):
        return len(given)
    arrays = given.values() if isinstance(given, Mapping) else given
    return next((len(a) for a in arrays if a.ndim), 1)


def run_in_parts(
    run: Callable[[Inputs], dict[str, AnyArray]],
    feed: Inputs,
    split: Collection[str],
    least: int,
    most: int,
) -> dict[str, AnyArray]:
    """Run samples in parts of ``least`` to ``most``; the last part is filled up.

    Args:
        run: returns the outputs by name for one part.
        feed: arrays by name.
        split: inputs whose first axis counts samples; the others are in every part as they are.
        least: fewest samples in a part.
        most: most samples in a part.

    Raises:
        UsageError: there are no samples, or an output has no axis of samples, so that its parts
            cannot be joined.
    """
    count = count_of(feed)
    cut = {n for n in split if len(feed[n]) == count}
    if least <= count <= most or not cut:
        return run(feed)
    if not count:
        raise UsageError(
            "Cannot run a batch without samples",
            f"its arrays have the shapes {', '.join(str(list(a.shape)) for a in feed.values())}",
            "Give one sample or more",
        )
    answers = []
    for i in range(0, count, most):
        part = {n: padded(a[i : i + most], least) if n in cut else a for n, a in feed.items()}
        size = max(min(most, count - i), least)
        answers.append(_require_samples(run(part), size))
    return {n: np.concatenate([a[n] for a in answers])[:count] for n in answers[0]}


def _require_samples(answer: dict[str, AnyArray], size: int) -> dict[str, AnyArray]:
    """Return the outputs of a part; each must have one row a sample.

    Raises:
        UsageError: names the output.
    """
    for name, array in answer.items():
        if array.shape[:1] != (size,):
            raise UsageError(
                f"Cannot join the output {name} of several batches",
                f"it has the shape {list(array.shape)} for {size} samples",
                f"Give --batch-size {size}",
            )
    return answer


def padded(batch: AnyArray, size: int) -> AnyArray:
    """Return at least ``size`` samples by repeating the last one.

    This is for models that take no fewer samples; the extra answers are dropped.

    Args:
        batch: [N, ...] with N of at least 1.
        size: fewest samples of the result.

    Returns:
        [max(N, size), ...]; ``batch`` itself where it is large enough.
    """
    return (
        np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
        if len(batch) < size
        else batch
    )


def concatenated(parts: Sequence[AnyArray]) -> AnyArray:
    """Return the answers of several batches as one.

    Args:
        parts: of one output, at least one: [N, ...] each.

    Returns:
        [sum of N, ...] where all parts agree but for the first axis. Answers without a common form,
        such as the boxes of each image, become one flat vector.
    """
    if all(p.ndim and p.shape[1:] == parts[0].shape[1:] for p in parts):
        return np.concatenate(parts)
    return np.concatenate([p.reshape(-1) for p in parts])
