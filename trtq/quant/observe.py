"""The calibration run: images stream through the graph once while observers gather ranges.

Memory remains bounded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from trtq import ops
from trtq.errors import CalibrationError
from trtq.graph.device import device_of, moved
from trtq.graph.feed import Feed, channels_last, count_of
from trtq.graph.naming import node_name
from trtq.quant.calibrators import INTERVAL_BITS, find_calibrator
from trtq.quant.histogram import MOST_COUNTED, Scratch, counting_step, new_scratch
from trtq.quant.placement import Placement
from trtq.quant.statistics import Bulk, ChannelSums, Ends, Seen, Statistic
from trtq.workers import Workers


@dataclass(frozen=True, slots=True)
class Range:
    """Observations of one activation.

    Attributes:
        ends: smallest and largest value.
        bulk: magnitudes of the first samples.
        channels: sums of each input channel of the layer that follows; None when the activation
            feeds no weight.
        statistic: what the calibrator gathers.
    """

    ends: Ends
    bulk: Bulk
    channels: ChannelSums | None
    statistic: Statistic

    @property
    def statistics(self) -> list[Statistic]:
        """All of them."""
        own: list[Statistic] = [] if self.channels is None else [self.channels]
        return [self.ends, self.bulk, *own, self.statistic]

    @property
    def low(self) -> float:
        """Smallest value, infinity before the first batch."""
        return float("inf") if self.ends.low is None else float(self.ends.low)

    @property
    def high(self) -> float:
        """Largest value, minus infinity before the first batch."""
        return float("-inf") if self.ends.high is None else float(self.ends.high)

    @property
    def amax(self) -> float:
        """Largest magnitude."""
        return max(abs(self.low), abs(self.high))


class Observer(nn.Module):
    """Watches one activation.

    Args:
        watched: where its statistics are gathered.
        scratch: work buffers, shared by all observers.
    """

    def __init__(self, watched: Range, scratch: Scratch) -> None:
        super().__init__()
        self.range, self.scratch = watched, scratch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Observe ``x`` and return it unchanged."""
        seen = Seen.of(x, self.scratch)
        for statistic in self.range.statistics:
            statistic.add(seen)
        return x


def _channel_axis(source: fx.Node, placement: Placement) -> int | None:
    """Return the channel axis of the layers behind an activation, None where they differ."""
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
    before: int = 0,
) -> dict[str, Range]:
    """Run ``batches`` through ``graph`` and return the observed range of each activation.

    The activations are those of ``placement``. All happens on the device of the graph.

    Args:
        graph: captured; not changed.
        placement: its quantizers; those left in float are watched too, so that their range can be
            reported.
        batches: a tensor, or one an input, samples first; read once.
        mode: the calibrator's name.
        progress: called with the number of images after each batch.
        before: samples that come before these in other processes (:func:`merge_`).

    Returns:
        By the name of the node that gives the activation (``Quantizer.source.name``).

    Raises:
        CalibrationError: no images, or NaN or infinity appeared; names the module where it first
            did.
    """
    device = device_of(graph)
    watched, ranges = _with_observers(graph, placement, mode, before)
    seen = 0
    with torch.inference_mode():
        for feed in moved(batches, device):
            watched(*channels_last(feed))
            seen += count_of(feed)
            if not _finite(ranges.values()):
                _raise_not_finite(graph, feed)
            if progress:
                progress(count_of(feed))
    if not seen:
        raise CalibrationError(
            "Cannot calibrate",
            "there are no calibration images",
            "Give a folder with images to --data",
        )
    return ranges


def merge_(ranges: Mapping[str, Range], workers: Workers) -> None:
    """Take over what all processes saw; each has observed a run of the samples.

    Args:
        ranges: from :func:`observe`, the same names in every process.
        workers: the processes, joined.
    """
    with torch.inference_mode():
        for statistic in (s for seen in ranges.values() for s in seen.statistics):
            statistic.merge_(workers)


def _with_observers(
    graph: fx.GraphModule, placement: Placement, mode: str, before: int
) -> tuple[fx.GraphModule, dict[str, Range]]:
    """Return a copy of ``graph`` with an observer behind each activation, and what they see."""
    watched = fx.GraphModule(graph, copy.deepcopy(graph.graph))
    by_name = {n.name: n for n in watched.graph.nodes}
    scratch, calibrator = new_scratch(device_of(graph)), find_calibrator(mode)
    ranges: dict[str, Range] = {}
    for source in placement.sources:
        node, axis = by_name[source.name], _channel_axis(source, placement)
        narrow = any(
            q.source is source and q.format.bits < INTERVAL_BITS for q in placement.quantizers
        )
        channels = None if axis is None else ChannelSums(axis, before)
        ranges[source.name] = Range(Ends(), Bulk(before), channels, calibrator.gather(narrow))
        attr = f"_observe_{node.name}"
        watched.add_submodule(attr, Observer(ranges[source.name], scratch))
        after = node
        while after.next.op in ("placeholder", "get_attr"):
            after = after.next
        with watched.graph.inserting_after(after):
            watched.graph.call_module(attr, (node,))
    watched.recompile()
    return watched, ranges


def sampled_note(placement: Placement) -> str:
    """Return a line for the user where histograms count a part of a tensor's values, else "".

    Args:
        placement: whose activations are observed.
    """
    shapes = [n.meta["val"].shape[1:] for n in placement.sources if "val" in n.meta]
    steps = [counting_step(s) for s in shapes if all(isinstance(d, int) for d in s)]
    large = [step for step in steps if step > 1]
    if not large:
        return ""
    return (
        f"histograms of {len(large)} large tensors count every k-th value, at most "
        f"{MOST_COUNTED:,} of a sample (k up to {max(large)}); ranges are those of all values"
    )


def _finite(ranges: Iterable[Range]) -> bool:
    """Whether all values were finite; the one place of a batch that waits for the device."""
    ends = [end for r in ranges for end in (r.ends.low, r.ends.high) if end is not None]
    return not ends or bool(torch.stack(ends).isfinite().all())


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
