"""Inputs drawn at random for any model: valid for its dtypes and for the tables that it reads.

They are repeatable: one seed. Times do not depend on values; indices must exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from trtq.export.feeds import AnyArray, InputSlot
from trtq.random_values import draw

SEED = 0


def random_feed(
    slots: Sequence[InputSlot],
    shapes: Mapping[str, Sequence[int]],
    tables: Mapping[str, int],
    *,
    seed: int = SEED,
) -> dict[str, AnyArray]:
    """Return an array for every input.

    Booleans are true. For the values of the others see :func:`trtq.random_values.draw`.

    Args:
        slots: the inputs.
        shapes: of each input.
        tables: rows of the table that an input indexes (:func:`trtq.export.tables.table_sizes`).
        seed: makes them repeatable.
    """
    generator = np.random.default_rng(seed)
    return {
        s.name: draw(generator, s.dtype, shapes[s.name], rows=tables.get(s.name)) for s in slots
    }
