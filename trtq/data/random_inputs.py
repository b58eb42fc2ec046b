"""The adapter of random inputs, drawn by what a model takes: for a first try without data."""

from __future__ import annotations

import numpy as np
import torch

from trtq.data.model_inputs import InputNeeds, InputSpec, SizeRange
from trtq.data.opened import Data, Request
from trtq.data.preprocess import Preprocess
from trtq.data.samples import Samples
from trtq.data.tensor_samples import TensorSamples
from trtq.errors import DataError, UsageError
from trtq.random_values import draw

USUAL = 32
LONGEST = 64  # of an open size without a limit
ABOUT = (
    "the inputs are random numbers: ranges and figures of them say nothing about real data, and "
    "the model is not calibrated"
)


def open_random(request: Request) -> Data:
    """Return random samples, drawn when it is known what the model takes.

    Args:
        request: its ``text`` is ``random`` or ``random:N``; its ``limit`` is the number of samples
            where the text has none, else 32.

    Raises:
        UsageError: ``random:N`` with an N that is no number of samples.
    """
    count = _count(request)

    def make(needs: InputNeeds | None, picture: Preprocess | None) -> Samples:
        del picture
        if needs is None:
            raise DataError(
                "Cannot draw random inputs without a model",
                "its signature has the shapes and types",
                "Give the model: trtq.samples('random', model)",
            )
        request.tell(ABOUT)
        samples = TensorSamples("random", RandomRows(needs, count), needs=needs)
        samples.drawn = True
        return samples

    return Data(name=request.text, make=make)


def _count(request: Request) -> int:
    if not request.place:
        return request.limit or USUAL
    if not request.place.isdecimal() or not int(request.place):
        raise UsageError(
            f"Cannot use --data {request.text}",
            f"{request.place!r} is no number of samples",
            "Write it like random:64",
        )
    return int(request.place)


class RandomRows:
    """Samples that depend on their position alone; an input without axes is one number for all.

    Args:
        needs: what the model takes.
        count: number of samples.
    """

    def __init__(self, needs: InputNeeds, count: int) -> None:
        self.needs, self.count = needs, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> object:
        count, sizes = len(self.needs.inputs), dict[str, int]()
        own, of_all = (np.random.default_rng([i, count]) for i in (index, 0))
        return {
            s.name: self._value(s, own if s.shape else of_all, sizes) for s in self.needs.inputs
        }

    def _value(
        self, spec: InputSpec, generator: np.random.Generator, sizes: dict[str, int]
    ) -> torch.Tensor:
        own = enumerate(self.needs.sample_shape(spec)) if spec.shape else ()
        shape = [self._size(spec, axis, size, sizes) for axis, size in own]
        rows = self.needs.rows.get(spec.name)
        batch = draw(generator, spec.dtype, [1, *shape], rows=rows, coins=True)
        return torch.from_numpy(batch)[0]

    def _size(self, spec: InputSpec, axis: int, size: int | str, sizes: dict[str, int]) -> int:
        """Return one size of a sample: fixed, that of the capture, or one within its range."""
        if isinstance(size, int):
            return size
        captured = self.needs.sizes.get(spec.name)
        usual = captured[axis] if captured is not None else LONGEST
        return sizes.setdefault(size, nearest(usual, self.needs.ranges.get(size)))


def nearest(size: int, known: SizeRange | None) -> int:
    """Return the size of a range that is nearest to another.

    Args:
        size: wanted.
        known: sizes that an axis takes; None for any.

    Returns:
        A size of the range, where it has one.
    """
    if known is None:
        return size
    most = size if known.most is None else known.most
    size = min(max(size, known.least), max(most, known.least))
    below = size - size % known.multiple
    return below if below in known else below + known.multiple
