"""Which axis of each input holds the samples: the first, or that of a state such as [2, batch, 64].

A batch of states is no run of rows in memory, and nothing cuts it: such models get one sample at a
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Shape = Sequence[int | str]


def sample_axes(shapes: Sequence[Shape]) -> list[int | None]:
    """Return the axis of the samples of every input; None where there is none.

    It is the axis with the name of another input's first axis. Without one it is the first axis
    where that is open or 1, or the same in all inputs; else an axis of 1, else an open one.

    Args:
        shapes: of the inputs, open axes as texts; one number for all samples has no axis, and 0.

    >>> sample_axes([("batch", 8), (2, "batch", 64), ()])
    [0, 1, 0]
    """
    firsts = {s[0] for s in shapes if s}
    names = {f for f in firsts if isinstance(f, str)}
    return [_axis_of(shape, names, alike=len(firsts) == 1) for shape in shapes]


class HasShape(Protocol):
    """An input."""

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Sizes; an open one is a text."""

    @property
    def words(self) -> str:
        """The input as a person reads it."""


def about_samples(inputs: Sequence[HasShape]) -> list[str]:
    """Return what a user must know of inputs whose first axis is not that of the samples.

    Args:
        inputs: of a model, in order.

    Returns:
        A line for each such input; empty where samples are first.
    """
    axes = sample_axes([i.shape for i in inputs])
    return [
        f"samples are given one at a time: axis {axis} of {i.words} holds them, and a sample has "
        f"the shape [{', '.join(str(s) for k, s in enumerate(i.shape) if k != axis)}]"
        for i, axis in zip(inputs, axes, strict=True)
        if axis
    ]


def _axis_of(shape: Shape, names: set[str], *, alike: bool) -> int | None:
    named = [i for i, size in enumerate(shape) if size in names]
    if named:
        return named[0]
    if not shape or alike or shape[0] == 1:
        return 0
    single = [i for i, size in enumerate(shape) if size == 1]
    opened = [i for i, size in enumerate(shape) if isinstance(size, str)]
    return next(iter((*single, *opened)), None)
