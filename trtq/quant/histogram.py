"""A streaming histogram of magnitudes that does not depend on how values are batched."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

NUM_BINS = 4096
SMALLEST_LIMIT = 2.0**-96  # below it bins per unit would overflow float32
CHUNK = 1 << 18  # elements per step: scratch memory stays at 2 MiB and in the cache

Counts = npt.NDArray[np.int64]


class Histogram:
    """Counts of |x| in ``NUM_BINS`` equal bins over [0, limit), where ``limit`` is a power of two.

    When a value beyond ``limit`` comes, ``limit`` doubles and neighbouring bins merge. As every
    limit is a power of two the bin edges nest exactly: the counts are those of one histogram over
    all values at the final limit, whatever the order and the batch size.

    Attributes:
        amax: the largest magnitude seen, exact.
        limit: upper edge of the last bin; ``limit / 2 <= amax < limit`` once a value other than 0
            was seen.
        counts: int64, shape [NUM_BINS].
    """

    __slots__ = ("amax", "counts", "limit")

    def __init__(self) -> None:
        self.amax = 0.0
        self.limit = 0.0
        self.counts: Counts = np.zeros(NUM_BINS, dtype=np.int64)

    def add(
        self,
        x: torch.Tensor,
        amax: float,
        scratch: tuple[torch.Tensor, torch.Tensor] | None = None,
        *,
        signed: bool = True,
    ) -> None:
        """Count the magnitudes of ``x``.

        Args:
            x: float32, any shape, finite.
            amax: its largest magnitude.
            scratch: a float32 and an int32 buffer of ``CHUNK`` elements to work in.
            signed: False when no value is below 0, which saves a step.
        """
        if amax >= self.limit and amax > 0.0:
            self._grow(amax)
        self.amax = max(self.amax, amax)
        flat = dense_view(x)
        if self.limit == 0.0:
            self.counts[0] += flat.numel()
            return
        floats, codes = scratch or new_scratch()
        factor = NUM_BINS / self.limit
        total = torch.zeros(NUM_BINS, dtype=torch.int64)
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            f, c = floats[: part.numel()], codes[: part.numel()]
            torch.mul(part, factor, out=f)
            c.copy_(f.abs_() if signed else f)
            total += torch.bincount(c, minlength=NUM_BINS)
        self.counts += total.numpy()

    def _grow(self, amax: float) -> None:
        limit = max(math.ldexp(1.0, math.frexp(amax)[1]), SMALLEST_LIMIT)
        if self.limit > 0.0:
            shift = round(math.log2(limit / self.limit))
            merged = np.zeros(NUM_BINS, dtype=np.int64)
            folds = min(1 << shift, NUM_BINS)
            sums = self.counts.reshape(-1, folds).sum(axis=1)
            merged[: sums.size] = sums
            self.counts = merged
        self.limit = limit

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """The middle of each bin; 0 for the first, where exact zeros (after a ReLU) gather."""
        centres: npt.NDArray[np.float64] = (np.arange(NUM_BINS, dtype=np.float64) + 0.5) * (
            self.limit / NUM_BINS
        )
        centres[0] = 0.0
        return centres

    @property
    def num_values(self) -> int:
        """How many values were counted."""
        return int(self.counts.sum())


def new_scratch() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two work buffers of :meth:`Histogram.add`."""
    return torch.empty(CHUNK), torch.empty(CHUNK, dtype=torch.int32)


def dense_view(x: torch.Tensor) -> torch.Tensor:
    """A flat view of a dense tensor in memory order.

    The order of values does not matter, so channels-last needs no copy.
    """
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).reshape(-1)
    return x.reshape(-1)
