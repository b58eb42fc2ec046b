"""The calibration run: images stream through the graph once while observers gather ranges.

Memory stays bounded.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import fx, nn

from trtq import ops
from trtq.errors import CalibrationError
from trtq.graph.feed import Feed, as_feed, channels_last
from trtq.graph.naming import node_name
from trtq.quant.calibrators import needs_histogram
from trtq.quant.histogram import Histogram, dense_view, new_scratch
from trtq.quant.placement import Placement

EMA_MOMENTUM = 0.99
BULK_IMAGES = 8
INTERVAL_BITS = 8  # with fewer, the interval of codes is chosen, too
MOMENT_IMAGES = 64  # means and variances of channels settle long before ranges do


@dataclass(slots=True)
class Range:
    """What one activation was seen to do.

    Attributes:
        low, high: smallest and largest value.
        average, averaged: moving sum of each image's largest magnitude, and of how many images; see
            :attr:`ema`.
        hist: magnitudes of all images; empty unless the calibrator reads it.
        bulk: magnitudes of the first ``BULK_IMAGES`` images, to tell outliers from the rest.
        positive, negative: magnitudes of the values above and below 0; empty unless the codes'
            interval is searched.
        zeros: how many of the values in ``bulk`` are exactly 0.
        sums, squares: float64, shape [C]: sum and sum of squares of each input channel of the layer
            that follows, over the first ``MOMENT_IMAGES`` images.
        count: values per channel in ``sums``.
    """

    low: float = float("inf")
    high: float = float("-inf")
    average: float = 0.0
    averaged: int = 0
    hist: Histogram = field(default_factory=Histogram)
    bulk: Histogram = field(default_factory=Histogram)
    positive: Histogram = field(default_factory=Histogram)
    negative: Histogram = field(default_factory=Histogram)
    zeros: int = 0
    sums: torch.Tensor | None = None
    squares: torch.Tensor | None = None
    count: int = 0

    def widen(self, low: float, high: float) -> None:
        """Count a batch's smallest and largest value.

        NaN compares false with everything: it must win, so that the run can stop and name it.
        """
        self.low = low if not low >= self.low else self.low
        self.high = high if not high <= self.high else self.high

    def add_average(self, value: float) -> None:
        """Count one image's largest magnitude.

        The start has no weight of its own (bias correction of Adam, Kingma 2014, 3).
        """
        self.average = EMA_MOMENTUM * self.average + (1.0 - EMA_MOMENTUM) * value
        self.averaged += 1

    @property
    def ema(self) -> float | None:
        """The moving average without the bias of its start, None before the first image."""
        return self.average / (1.0 - EMA_MOMENTUM**self.averaged) if self.averaged else None

    @property
    def amax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))


class Observer(nn.Module):
    """Watches one activation.

    Args:
        mode: the calibrator's name; it decides what is gathered.
        channel_axis: the axis along which the following layer sums (1 for a convolution, -1 for a
            linear), None when the activation feeds no weight.
        scratch: work buffers, shared by all observers.
        sides: gather the two sides of 0 apart, too.
    """

    def __init__(
        self,
        mode: str,
        channel_axis: int | None,
        scratch: tuple[torch.Tensor, torch.Tensor],
        *,
        sides: bool,
    ) -> None:
        super().__init__()
        self.sides = sides
        self.range = Range()
        self.mode, self.channel_axis, self.scratch = mode, channel_axis, scratch
        self.images = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Observe ``x`` and return it unchanged."""
        low, high = (float(v) for v in torch.aminmax(dense_view(x)))
        self.range.widen(low, high)
        if not math.isfinite(low) or not math.isfinite(high):
            return x
        amax = max(abs(low), abs(high))
        if self.images < BULK_IMAGES:
            self._add_bulk(x[: BULK_IMAGES - self.images], amax, signed=low < 0)
        if self.channel_axis is not None and self.images < MOMENT_IMAGES:
            self._add_moments(x[: MOMENT_IMAGES - self.images])
        self.images += len(x)
        if self.mode == "ema":
            # Image by image, so that the result does not depend on the batch size.
            for image in x:
                value = max(abs(float(v)) for v in torch.aminmax(dense_view(image[None])))
                self.range.add_average(value)
        elif needs_histogram(self.mode):
            self.range.hist.add(x, amax, self.scratch, signed=low < 0)
        if self.sides:
            self._add_sides(x, low, high)
        return x

    def _add_bulk(self, x: torch.Tensor, amax: float, *, signed: bool) -> None:
        self.range.bulk.add(x, amax, self.scratch, signed=signed)
        self.range.zeros += x.numel() - int(torch.count_nonzero(x))

    def _add_sides(self, x: torch.Tensor, low: float, high: float) -> None:
        self.range.positive.add(x.clamp_min(0.0), max(high, 0.0), self.scratch, signed=False)
        if low < 0:
            self.range.negative.add(x.neg().clamp_min_(0.0), -low, self.scratch, signed=False)

    def _add_moments(self, x: torch.Tensor) -> None:
        in_memory = self.channel_axis
        if (
            in_memory == 1 and x.ndim == 4 and not x.is_contiguous()
        ):  # channels-last: channels are the last axis in memory
            x, in_memory = x.permute(0, 2, 3, 1), -1
        if in_memory == 1:
            flat = x.flatten(2)
            sums, squares = (
                flat.sum(2).double().sum(0),
                torch.linalg.vector_norm(flat, 2, 2).double().square().sum(0),
            )
        else:
            flat = x.reshape(-1, x.shape[-1])
            sums, squares = flat.sum(0).double(), flat.square().sum(0).double()
        seen = self.range
        seen.sums = sums if seen.sums is None else seen.sums + sums
        seen.squares = squares if seen.squares is None else seen.squares + squares
        seen.count += x.numel() // sums.numel()


def _channel_axis(source: fx.Node, placement: Placement) -> int | None:
    axes = {
        ops.of(q.consumer).channels
        for q in placement.quantizers
        if q.source is source and q.role == "input"
    }
    # A tensor that feeds a convolution and a linear has no one channel axis: its weights take their
    # plain maximum.
    return axes.pop() if len(axes) == 1 else None


def observe(
    graph: fx.GraphModule,
    placement: Placement,
    batches: Iterable[torch.Tensor | Feed],
    *,
    mode: str,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Range]:
    """Run ``batches`` through ``graph`` and return the observed range of each activation.

    The activations are those of ``placement``; the key is the node name.

    Args:
        graph: captured; not changed.
        placement: its quantizers; those left in float are watched too, so that their range can be
            reported.
        batches: a tensor, or one an input, samples first; read once.
        mode: the calibrator's name.
        progress: called with the number of images after each batch.

    Raises:
        CalibrationError: no images, or NaN or infinity appeared; names the module where it first
            did.
    """
    watched, observers = _with_observers(graph, placement, mode)
    seen = 0
    with torch.inference_mode():
        for batch in batches:
            feed = as_feed(batch)
            watched(*channels_last(feed))
            seen += len(feed[0])
            if any(not _finite(o.range) for o in observers.values()):
                _raise_not_finite(graph, feed)
            if progress:
                progress(len(feed[0]))
    if not seen:
        raise CalibrationError(
            "Cannot calibrate",
            "there are no calibration images",
            "Give a folder with images to --data",
        )
    return {name: o.range for name, o in observers.items()}


def _with_observers(
    graph: fx.GraphModule, placement: Placement, mode: str
) -> tuple[fx.GraphModule, dict[str, Observer]]:
    """Return a copy of ``graph`` with an observer behind each activation, and those by its name."""
    watched = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    by_name = {n.name: n for n in watched.graph.nodes}
    scratch, observers = new_scratch(), dict[str, Observer]()
    for source in placement.sources:
        node = by_name[source.name]
        narrow = any(
            q.source is source and q.format.bits < INTERVAL_BITS for q in placement.quantizers
        )
        observer = Observer(
            mode, _channel_axis(source, placement), scratch, sides=narrow and mode == "mse"
        )
        attr = f"_observe_{node.name}"
        watched.add_submodule(attr, observer)
        after = node
        while after.next.op in ("placeholder", "get_attr"):
            after = after.next
        with watched.graph.inserting_after(after):
            watched.graph.call_module(attr, (node,))
        observers[source.name] = observer
    watched.recompile()
    return watched, observers


def _finite(seen: Range) -> bool:
    return math.isfinite(seen.low) and math.isfinite(seen.high)


class _FirstNotFinite(fx.Interpreter):
    """Stops at the first node that makes NaN or infinity out of finite inputs."""

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if (
            n.op == "call_function"
            and isinstance(result, torch.Tensor)
            and result.is_floating_point()
        ):
            bad = int((~torch.isfinite(result)).sum())
            # An attention mask is made of -inf on purpose; softmax turns it into zeros.
            if bad and (
                torch.isnan(result).any() or not any("softmax" in str(u.target) for u in n.users)
            ):
                raise CalibrationError(
                    f"Calibration stopped: {node_name(n)} gives NaN or infinity",
                    f"{bad} of {result.numel()} values of {list(result.shape)}",
                    "Check the weights before that layer, the images and --mean and --std",
                )
        return result


def _raise_not_finite(graph: fx.GraphModule, feed: Feed) -> None:
    _FirstNotFinite(graph).run(*feed)
    raise CalibrationError(
        "Calibration stopped",
        "an activation is NaN or infinite",
        "Check the weights and the images",
    )
