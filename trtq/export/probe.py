"""What each quantizer does to its tensor on compared samples."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import torch
from torch import fx

from trtq.data.metrics import ratio_db
from trtq.quant.fake_quantize import FakeQuantizeCall
from trtq.quant.histogram import NUM_BINS, Histogram, counted, dense, dense_view, new_scratch

COARSE_BINS = 64


class QuantizerStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one quantizer did to its tensor on the compared images.

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
    """What one quantizer did so far.

    Attributes:
        signal, noise: sums of squares of its tensor, and of what it changed.
        saturated, count: values beyond the outermost code, and all.
        low, high: smallest and largest value.
        hist: magnitudes.
    """

    signal: float = 0.0
    noise: float = 0.0
    saturated: float = 0.0
    count: int = 0
    low: float = math.inf
    high: float = -math.inf
    hist: Histogram = field(default_factory=Histogram)

    def add(
        self,
        call: FakeQuantizeCall,
        result: torch.Tensor,
        scratch: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """Count one batch."""
        x = call.x
        low, high = (float(v) for v in torch.aminmax(x))
        self.signal += _energy(x)
        self.noise += _energy(x - result)
        self.count += x.numel()
        self.low, self.high = min(self.low, low), max(self.high, high)
        top, bottom = call.qmax + 0.5, call.qmin - 0.5
        even = call.kind in ("uniform", "fp8")
        if not even or high > top * float(call.scale) or low < bottom * float(call.scale):
            where = call.positions(x)
            self.saturated += float(((where > top) | (where < bottom)).sum())
        self.hist.add(counted(dense(x)), max(abs(low), abs(high)), scratch)


class Probe(fx.Interpreter):
    """Runs the simulation and measures every activation's fake-quantize call on the way."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.sums: dict[str, _Sums] = {}
        self.scratch = new_scratch()
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
            sqnr = ratio_db(sums.signal, sums.noise)
            bins = sums.hist.counts.reshape(COARSE_BINS, NUM_BINS // COARSE_BINS)
            stats[name] = QuantizerStats(
                sqnr_db=round(sqnr, 3) if math.isfinite(sqnr) else None,
                saturated=sums.saturated / max(sums.count, 1.0),
                histogram=bins.sum(axis=1).tolist(),
                histogram_limit=sums.hist.limit,
                low=sums.low,
                high=sums.high,
            )
        return stats


def _energy(x: torch.Tensor) -> float:
    """Return the sum of squares.

    Dot products in float32 are blocked, so their error stays near 1e-6.
    """
    flat = dense_view(x)
    return float(torch.dot(flat, flat))
