"""Values drawn at random for any input of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

BYTE = 255
MASK_RANK, IMAGE_RANK = 2, 4


def draw(
    generator: np.random.Generator,
    dtype: str,
    shape: Sequence[int],
    *,
    rows: int | None = None,
    coins: bool = False,
) -> npt.NDArray[Any]:
    """Return values that an input of a model takes.

    Floats are standard normal. Integers that index a table are below its size. Bytes, and other
    integers of rank 4, are pixels: 0 to 255. The rest is a mask, a length or a flag: 1.

    Args:
        generator: makes them repeatable.
        dtype: of NumPy, such as ``float32``.
        shape: sizes, the batch included.
        rows: of the table that the values index, where they do.
        coins: masks are 0 or 1, the first of each row 1: ranges and answers then depend on them.
    """
    kind, sizes = np.dtype(dtype), tuple(shape)
    if kind.kind == "f":
        return generator.standard_normal(sizes, dtype=np.float32).astype(kind, copy=False)
    if rows is not None and kind.kind != "b":
        return generator.integers(0, rows, sizes).astype(kind)
    if dtype == "uint8" or (kind.kind != "b" and len(sizes) == IMAGE_RANK):
        most = min(BYTE, int(np.iinfo(kind).max))
        return generator.integers(0, most, sizes, endpoint=True).astype(kind)
    if not coins or len(sizes) < MASK_RANK:
        return np.ones(sizes, kind)
    values = generator.integers(0, 2, sizes).astype(kind)
    values[..., 0] = 1
    return values
