"""A streaming histogram of magnitudes that does not depend on how values are batched."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from trtq.workers import Workers

NUM_BINS = 4096
SMALLEST_LIMIT = 2.0**-96  # below it bins per unit would overflow float32
CHUNK = 1 << 18  # elements per step: scratch memory remains at 2 MiB and in the cache
MAX_SHIFT = 12  # all bins merge into the first
MOST_COUNTED = 1 << 17  # values of one sample; of a larger tensor every k-th is counted

Counts = npt.NDArray[np.int64]
Scratch = tuple[torch.Tensor, torch.Tensor]


class Histogram:
    """Counts of |x| in ``NUM_BINS`` equal bins over [0, limit), where ``limit`` is a power of two.

    When a value beyond ``limit`` comes, ``limit`` doubles and neighbouring bins merge. As every
    limit is a power of two the bin edges nest exactly: the counts are those of one histogram over
    all values at the final limit, for any order and batch size.

    Counting happens on the device of the values, and nothing waits for it; reading an attribute
    does.
    """

    __slots__ = ("_amax", "_counts", "_limit")

    def __init__(self) -> None:
        self._amax: torch.Tensor = torch.zeros((), dtype=torch.float64)
        self._limit: torch.Tensor = torch.zeros((), dtype=torch.float64)
        self._counts: torch.Tensor = torch.zeros(NUM_BINS, dtype=torch.int64)

    def add(
        self, x: torch.Tensor, amax: float | torch.Tensor, scratch: Scratch | None = None
    ) -> None:
        """Count the magnitudes of ``x``.

        Args:
            x: float32, any shape. With NaN or infinity the counts are invalid afterwards.
            amax: its largest magnitude, shape [].
            scratch: a float32 and an int32 buffer of ``CHUNK`` elements to work in.
        """
        self._grow(torch.as_tensor(amax, dtype=torch.float64, device=x.device))
        flat = dense_view(x)
        floats, codes = scratch or new_scratch(x.device)
        factor = torch.where(self._limit > 0.0, NUM_BINS / self._limit, 0.0).float()
        for start in range(0, flat.numel(), CHUNK):
            part = flat[start : start + CHUNK]
            f, c = floats[: part.numel()], codes[: part.numel()]
            torch.mul(part, factor, out=f)
            c.copy_(f.abs_())
            self._counts += _count(c.clamp_(0, NUM_BINS - 1))

    def merge_(self, workers: Workers) -> None:
        """Add the counts of all processes, exactly: each grows to the largest limit first.

        Args:
            workers: the processes; every one calls this, and has added values, if only none.
        """
        self._grow(workers.max_(self._amax.clone()))
        self._counts = workers.sum_(self._counts)

    def _grow(self, amax: torch.Tensor) -> None:
        """Raise the limit above ``amax`` and merge bins accordingly.

        A limit that grows by 2^k merges 2^k neighbouring bins into one.

        Args:
            amax: float64 [], on the device that counts from now on.
        """
        device = amax.device
        counts, before = self._counts.to(device), self._limit.to(device)
        self._amax = torch.maximum(self._amax.to(device), amax)
        power = amax / torch.frexp(amax).mantissa  # exact
        wanted = torch.where(amax > 0.0, power.clamp_min(SMALLEST_LIMIT), 0.0)
        self._limit = torch.maximum(before, wanted)
        ratio = torch.where(before > 0.0, self._limit / before, 1.0)
        shift = (torch.frexp(ratio).exponent - 1).clamp(0, MAX_SHIFT)
        bins = torch.arange(NUM_BINS, device=device) >> shift
        self._counts = torch.zeros_like(counts).index_add_(0, bins, counts)

    @property
    def amax(self) -> float:
        """The largest magnitude seen, exact."""
        return float(self._amax)

    @property
    def limit(self) -> float:
        """Upper edge of the last bin; ``limit / 2 <= amax < limit`` once a value was not 0."""
        return float(self._limit)

    @property
    def counts(self) -> Counts:
        """Values in each bin, int64, shape [NUM_BINS]."""
        counts: Counts = self._counts.cpu().numpy()
        return counts

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


def _count(codes: torch.Tensor) -> torch.Tensor:
    """Return how often each bin occurs, int64; ``bincount`` of a GPU waits for its answer."""
    if codes.device.type == "cpu":
        return torch.bincount(codes, minlength=NUM_BINS)
    return torch.histc(codes, NUM_BINS, 0, NUM_BINS).to(torch.int64)


def new_scratch(device: torch.device | None = None) -> Scratch:
    """Return the two work buffers of :meth:`Histogram.add`: float32 and int32 [CHUNK].

    Args:
        device: where values are counted; None for the CPU.
    """
    floats = torch.empty(CHUNK, device=device)
    return floats, torch.empty(CHUNK, dtype=torch.int32, device=device)


def dense(x: torch.Tensor) -> torch.Tensor:
    """Return a tensor without gaps between its values: a copy of one that has some.

    A slice or a transposed tensor is then copied once, not by each statistic.

    Args:
        x: any shape; the copy of one with four axes has its channels last.
    """
    if x.is_contiguous():
        return x
    images = x.ndim == 4
    return x.contiguous(memory_format=torch.channels_last if images else torch.contiguous_format)


def dense_view(x: torch.Tensor) -> torch.Tensor:
    """Return a flat view of a dense tensor in memory order, [values].

    The order of values does not matter, so channels-last needs no copy.
    """
    return (dense_rows(x) if x.ndim else x).reshape(-1)


def dense_rows(x: torch.Tensor) -> torch.Tensor:
    """Return the values of each sample in memory order, shape [N, values]."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        x = x.permute(0, 2, 3, 1)
    return x.reshape(len(x), math.prod(x.shape[1:]))


def counted(x: torch.Tensor) -> torch.Tensor:
    """Return the values of a dense tensor that a histogram counts.

    These are all values of a sample, or every k-th one in memory order (:func:`counting_step`);
    which ones does not depend on the batch.

    Args:
        x: samples first; a tensor of one number is one sample.

    Returns:
        Shape [N, values / k].
    """
    rows = dense_rows(x) if x.ndim else x.reshape(1, 1)
    step = counting_step(x.shape[1:])
    return rows[:, ::step].contiguous() if step > 1 else rows


def counting_step(sizes: Sequence[int]) -> int:
    """Return k: of each sample every k-th value is counted.

    It is 1 up to ``MOST_COUNTED`` values. No size has a divisor in common with k, so that every
    channel and every position has its share.

    Args:
        sizes: of a sample, without the batch.

    >>> counting_step((64, 56, 56)), counting_step((64, 112, 112))
    (3, 9)
    """
    step = -(-math.prod(sizes) // MOST_COUNTED)
    while step > 1 and any(math.gcd(size, step) > 1 for size in sizes):
        step += 1
    return step
