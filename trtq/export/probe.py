"""Effect of each quantizer on its tensor, on compared samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import fx

from trtq.data.metrics import ratio_db
from trtq.graph.device import device_of
from trtq.quant.fake_quantize import FakeQuantizeCall
from trtq.quant.histogram import NUM_BINS, Histogram, counted, dense, dense_view, new_scratch

COARSE_BINS = 64


class QuantizerStats(msgspec.Struct, frozen=True, kw_only=True):
    """Effect of one quantizer on its tensor, on the compared images.

    Attributes:
        sqnr_db: signal to its own rounding and clipping error; None when exact or never active.
        saturated: share of values beyond the outermost code, 0 to 1.
        histogram: counts of magnitudes in 64 equal bins over [0, histogram_limit); empty for
            weights.
        histogram_limit: upper edge of the last bin.
        low, high: smallest and largest value.
    """

    sqnr_db: float | None
    saturated: float
    histogram: list[int] = []
    histogram_limit: float = 0.0
    low: float = 0.0
    high: float = 0.0


@dataclass(slots=True)
class _Sums:
    """Effect of one quantizer so far, on the device of its tensor; only reading waits for it.

    Attributes:
        signal, noise: sums of squares of its tensor, and of what it changed, float64.
        saturated: values beyond the outermost code.
        count: all values.
        low, high: smallest and largest value.
        hist: magnitudes.
    """

    signal: torch.Tensor | float = 0.0
    noise: torch.Tensor | float = 0.0
    saturated: torch.Tensor | float = 0.0
    count: int = 0
    low: torch.Tensor | None = None
    high: torch.Tensor | None = None
    hist: Histogram = field(default_factory=Histogram)

    def add(
        self,
        call: FakeQuantizeCall,
        result: torch.Tensor,
        scratch: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """Count one batch."""
        x = call.x
        low, high = torch.aminmax(x)
        self.signal = self.signal + _energy(x)
        self.noise = self.noise + _energy(x - result)
        self.count += x.numel()
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        top, bottom = call.qmax + 0.5, call.qmin - 0.5
        if not _surely_within(call, low, high, top, bottom):
            where = call.positions(x)
            self.saturated = self.saturated + ((where > top) | (where < bottom)).sum()
        self.hist.add(counted(dense(x)), torch.maximum(low.abs(), high.abs()), scratch)


def _surely_within(
    call: FakeQuantizeCall, low: torch.Tensor, high: torch.Tensor, top: float, bottom: float
) -> bool:
    """Whether no value can be beyond the codes; on a GPU counting is cheaper than asking."""
    if low.device.type != "cpu" or call.kind not in ("uniform", "fp8"):
        return False
    scale = float(call.scale)
    return float(high) <= top * scale and float(low) >= bottom * scale


class Probe(fx.Interpreter):
    """Runs the simulation and measures every activation's fake-quantize call on the way.

    Args:
        graph: with fake-quantize calls, on any device.

    Attributes:
        sums: what each activation quantizer did so far, by its name.
        weights: quantized constants by call: they are computed once.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.sums: dict[str, _Sums] = {}
        self.scratch = new_scratch(device_of(graph))
        self.weights: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and measure what a fake-quantize call does."""
        call = FakeQuantizeCall.of(n)
        if call is None:
            return super().run_node(n)
        if n in self.weights:
            # A constant is quantized once; what it loses is measured against the weight as given,
            # elsewhere.
            return self.weights[n]
        result = super().run_node(n)
        if call.of_constant:
            self.weights[n] = result
        else:
            values = FakeQuantizeCall(*self.fetch_args_kwargs_from_env(n)[0])
            self.sums.setdefault(call.name, _Sums()).add(values, result, self.scratch)
        return result

    def stats(self) -> dict[str, QuantizerStats]:
        """Return what was measured, by quantizer name."""
        stats = {}
        for name, sums in self.sums.items():
            assert sums.low is not None and sums.high is not None
            sqnr = ratio_db(float(sums.signal), float(sums.noise))
            bins = sums.hist.counts.reshape(COARSE_BINS, NUM_BINS // COARSE_BINS)
            stats[name] = QuantizerStats(
                sqnr_db=round(sqnr, 3) if math.isfinite(sqnr) else None,
                saturated=float(sums.saturated) / max(sums.count, 1),
                histogram=bins.sum(axis=1).tolist(),
                histogram_limit=sums.hist.limit,
                low=float(sums.low),
                high=float(sums.high),
            )
        return stats


def _energy(x: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares, float64, shape [].

    Dot products in float32 are blocked, so their error remains near 1e-6.
    """
    flat = dense_view(x)
    return torch.dot(flat, flat).double()
