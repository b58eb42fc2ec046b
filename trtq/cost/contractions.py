"""Multiply-accumulates of products that no single axis describes: einsum and recurrent layers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence


def einsum_macs(equation: str, shapes: Sequence[Sequence[int]]) -> int:
    """Return the multiply-accumulates of an einsum of two operands or more, computed as one loop.

    That is the product of the sizes of all its labels; an ellipsis stands for labels of its own.
    One operand alone is summed or moved, and multiplies nothing.

    >>> einsum_macs("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)])
    120
    >>> einsum_macs("...i,i->...", [(7, 4), (4,)])
    28
    >>> einsum_macs("ij->ji", [(3, 4)])
    0

    Args:
        equation: as for ``torch.einsum``, in text.
        shapes: of the operands.
    """
    if len(shapes) < 2:
        return 0
    sizes: dict[str, int] = {}
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    for term, shape in zip(terms, shapes, strict=True):
        before, _, after = term.partition("...")
        hidden = len(shape) - len(before) - len(after)
        # Axes of an ellipsis are aligned at the right, as in broadcasting.
        labels = [*before, *(f"...{k}" for k in range(hidden, 0, -1)), *after]
        for label, size in zip(labels, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def recurrent_macs(positions: int, matrices: Iterable[Sequence[int]]) -> int:
    """Return the multiply-accumulates of an LSTM, GRU or RNN: each matrix once a position.

    Args:
        positions: of all sequences: steps times batch.
        matrices: shapes of the weights of the input and of the state, of every layer and direction.
    """
    return positions * sum(math.prod(shape) for shape in matrices)
