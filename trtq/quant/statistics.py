"""Statistics of an activation in a calibration run.

A statistic sees every batch. It remains on the device of the values, and nothing in ``add`` waits
for that device.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch

from trtq.quant.histogram import MOST_COUNTED, Histogram, Scratch, counted, dense, dense_view
from trtq.workers import Workers

BULK_IMAGES = 8
MOMENT_IMAGES = 64  # means and variances of channels settle long before ranges do


class Seen(NamedTuple):
    """A batch of one activation.

    Attributes:
        values: float32, shape [N, ...].
        counted: those of them that histograms count, shape [N, values].
        low, high: smallest and largest of all values, shape [].
        scratch: work buffers for histograms.
    """

    values: torch.Tensor
    counted: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    scratch: Scratch

    @classmethod
    def of(cls, x: torch.Tensor, scratch: Scratch) -> Seen:
        """Return a batch with its smallest and largest value.

        Args:
            x: float32, samples first, any memory layout.
            scratch: work buffers, from :func:`trtq.quant.histogram.new_scratch`.
        """
        values = dense(x)
        return cls(values, counted(values), *torch.aminmax(dense_view(values)), scratch)

    @property
    def amax(self) -> torch.Tensor:
        """The largest magnitude, shape []."""
        return torch.maximum(self.low.abs(), self.high.abs())


class Statistic(Protocol):
    """Statistics of one activation; a calibrator from outside trtq may bring its own."""

    def add(self, seen: Seen) -> None:
        """Count a batch; the same samples in other batches give the same statistic.

        Where a value is NaN or infinite the run stops after the batch.

        Args:
            seen: the batch; it is used again by other statistics and must not change.
        """

    def merge_(self, workers: Workers) -> None:
        """Take over what all processes counted, each a run of the samples in order of its rank.

        Every process has counted a batch, and every one calls this.

        Args:
            workers: the processes, joined.
        """


class Nothing:
    """For a calibrator that needs the ends of a range only."""

    def add(self, seen: Seen) -> None:
        """Count nothing."""

    def merge_(self, workers: Workers) -> None:
        """Take over nothing."""


class Ends:
    """Smallest and largest value; NaN wins, so that the run can stop and name it.

    Attributes:
        low, high: float32 []; None before the first batch.
    """

    def __init__(self) -> None:
        self.low: torch.Tensor | None = None
        self.high: torch.Tensor | None = None

    def add(self, seen: Seen) -> None:
        """Count a batch."""
        self.low = seen.low if self.low is None else torch.minimum(self.low, seen.low)
        self.high = seen.high if self.high is None else torch.maximum(self.high, seen.high)

    def merge_(self, workers: Workers) -> None:
        """Take the smallest and the largest value of all processes."""
        self.low, self.high = workers.min_(self.low), workers.max_(self.high)


class Magnitudes:
    """The histogram of magnitudes."""

    def __init__(self) -> None:
        self.hist = Histogram()

    def add(self, seen: Seen) -> None:
        """Count a batch."""
        self.hist.add(seen.counted, seen.amax, seen.scratch)

    def merge_(self, workers: Workers) -> None:
        """Add the counts of all processes."""
        self.hist.merge_(workers)


class Bulk:
    """Magnitudes of the first ``BULK_IMAGES`` samples, to tell outliers from the rest.

    Args:
        before: samples that other processes count.

    Attributes:
        zeros: how many of them are exactly 0.
    """

    def __init__(self, before: int = 0) -> None:
        self.hist = Histogram()
        self.samples = before
        self.zeros: torch.Tensor | int = 0

    def add(self, seen: Seen) -> None:
        """Count a batch."""
        left = max(0, BULK_IMAGES - self.samples)
        if left:
            x = seen.counted[:left]
            self.hist.add(x, seen.amax, seen.scratch)
            self.zeros = self.zeros + (x.numel() - torch.count_nonzero(x))
        elif isinstance(self.zeros, int):  # an empty count, where the values are
            self.hist.add(seen.counted[:0], torch.zeros_like(seen.amax), seen.scratch)
            self.zeros = torch.zeros((), dtype=torch.int64, device=seen.amax.device)
        self.samples += len(seen.values)

    def merge_(self, workers: Workers) -> None:
        """Add the counts of all processes."""
        self.hist.merge_(workers)
        self.zeros = workers.sum_(self.zeros)


class ChannelSums:
    """Sum and sum of squares of each input channel of the layer that follows.

    Only the first ``MOMENT_IMAGES`` samples are counted.

    Args:
        axis: of the channels: 1 for a convolution, -1 for a linear.
        before: samples that other processes count.

    Attributes:
        sums, squares: float64, shape [C]; None before the first batch.
        count: values per channel.
    """

    def __init__(self, axis: int, before: int = 0) -> None:
        self.axis = axis
        self.samples = before
        self.sums: torch.Tensor | None = None
        self.squares: torch.Tensor | None = None
        self.count = 0

    def add(self, seen: Seen) -> None:
        """Count a batch."""
        left = max(0, MOMENT_IMAGES - self.samples)
        if left or self.sums is None:
            self._add(seen.values[:left])
        self.samples += len(seen.values)

    def merge_(self, workers: Workers) -> None:
        """Add the sums of all processes."""
        assert self.sums is not None
        self.count = int(workers.sum_(torch.tensor(self.count, device=self.sums.device)))
        self.sums, self.squares = workers.sum_(self.sums), workers.sum_(self.squares)

    def _add(self, x: torch.Tensor) -> None:
        in_memory = self.axis
        if in_memory == 1 and x.ndim == 4:
            x = x[:, :, :: _step(x)]  # rows of pixels
        if in_memory == 1 and x.ndim == 4 and not x.is_contiguous():
            x, in_memory = x.permute(0, 2, 3, 1), -1  # channels last
        if in_memory == 1:
            flat = x.flatten(2)
            sums = flat.sum(2).double().sum(0)
            squares = torch.linalg.vector_norm(flat, 2, 2).double().square().sum(0)
        else:
            flat = x.reshape(-1, x.shape[-1])
            sums, squares = flat.sum(0).double(), flat.square().sum(0).double()
        self.sums = sums if self.sums is None else self.sums + sums
        self.squares = squares if self.squares is None else self.squares + squares
        self.count += x.numel() // sums.numel()


def _step(x: torch.Tensor) -> int:
    """Return that every k-th row of pixels is enough for sums: every one of a small tensor."""
    return max(1, min(x.shape[2], math.prod(x.shape[1:]) // MOST_COUNTED))
