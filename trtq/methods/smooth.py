"""SmoothQuant: move difficult activation channels into the weights that read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from trtq.graph.naming import node_name
from trtq.graph.normalize import get_constant, operands
from trtq.methods.base import Method, Workbench, channel_axis
from trtq.methods.pairs import LARGEST_FACTOR, Pair, find_pairs, fold_factors

STRENGTHS = (0.5, 0.6, 0.7, 0.8, 0.9)


class _Watch(fx.Interpreter):
    """Keeps the largest magnitude of each channel of some activations, and some rows of the layer's input."""

    def __init__(self, graph: fx.GraphModule, axes: Mapping[str, int], rows: int) -> None:
        super().__init__(graph)
        self.axes, self.rows = axes, rows
        self.amax = dict[str, torch.Tensor]()
        self.samples = dict[str, torch.Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.axes:
            flat = result.movedim(self.axes[n.name], -1).reshape(-1, result.shape[self.axes[n.name]])
            amax = flat.abs().amax(dim=0)
            self.amax[n.name] = torch.maximum(self.amax[n.name], amax) if n.name in self.amax else amax
            if n.name not in self.samples:
                generator = torch.Generator().manual_seed(0)
                self.samples[n.name] = flat[torch.randint(len(flat), (self.rows,), generator=generator)].clone()
        return result


def smoothing_factors(activation: torch.Tensor, weight: torch.Tensor, strength: float) -> torch.Tensor:
    """Return s_j = max|X_j|^m / max|W_j|^(1-m), scaled to a geometric mean of 1 (Xiao et al. 2023, eq. 4).

    Args:
        activation: largest magnitude of each channel, float32 [C].
        weight: largest magnitude of the weights that read it, float32 [C].
        strength: m, 0 (nothing moves to the weights beyond what they can take) to 1.

    >>> smoothing_factors(torch.tensor([16.0, 1.0]), torch.tensor([1.0, 1.0]), 0.5).tolist()
    [2.0, 0.5]
    """
    # A channel without values, or that nothing reads, moves nothing.
    live = (activation > 0) & (weight > 0)
    safe = torch.where(live, activation, torch.ones_like(activation)), torch.where(live, weight, torch.ones_like(weight))
    factors = safe[0].pow(strength) / safe[1].pow(1.0 - strength)
    if bool(live.any()):
        factors = (factors / factors[live].log().mean().exp()).clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR)
    return torch.where(live, factors, torch.ones_like(factors))


def _round_trip(x: torch.Tensor, amax: torch.Tensor, qmax: int) -> torch.Tensor:
    step = (amax / qmax).clamp_min(torch.finfo(torch.float32).tiny)
    return (x / step).round().clamp(-qmax - 1, qmax) * step


def _error(rows: torch.Tensor, amax: torch.Tensor, weights: list[torch.Tensor], factors: torch.Tensor, bits: tuple[int, int]) -> float:
    """Return the squared error of the layers' outputs on sampled rows, both operands quantized."""
    q_in, q_weight = (1 << (bits[0] - 1)) - 1, (1 << (bits[1] - 1)) - 1
    x = _round_trip(rows / factors, (amax / factors).max(), q_in)
    total = 0.0
    for weight in weights:
        w = weight * factors
        quantized = _round_trip(w, w.abs().amax(dim=1, keepdim=True), q_weight)
        total += float((x @ quantized.T - rows @ weight.T).square().sum())
    return total


def run(bench: Workbench, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Fold factors into every pair; the strength is the one with the least output error unless one is given."""
    pairs, refused = find_pairs(bench)
    bits = {q.consumer: q.format.bits for q in bench.placement.active if q.role == "weight"}
    bits_in = {q.consumer: q.format.bits for q in bench.placement.active if q.role == "input"}
    axes = {p.activation.name: channel_axis(p.consumers[0]) for p in pairs}
    watch = _Watch(bench.graph, axes, int(arguments["rows"]))
    with torch.inference_mode():
        for batch in bench.images(int(arguments["images"])):
            watch.run(batch)
    chosen: dict[str, float | None] = {}  # None: left as it is
    given = float(arguments["strength"])
    for pair in pairs:
        amax, rows = watch.amax[pair.activation.name], watch.samples[pair.activation.name]
        weights = [_matrix(bench, c, pair) for c in pair.consumers]
        largest = torch.stack([w.abs().amax(dim=0) for w in weights]).amax(dim=0)
        width = bits_in.get(pair.consumers[0], 8), bits[pair.consumers[0]]
        options: dict[float | None, torch.Tensor] = {None: torch.ones(pair.channels)} if given < 0 else {}
        options |= {m: smoothing_factors(amax, largest, m) for m in ((given,) if given >= 0 else STRENGTHS)}
        best = min(options, key=lambda m: _error(rows, amax, weights, options[m], width))
        chosen[node_name(pair.consumers[0])] = best
        if best is not None:
            fold_factors(bench, pair, options[best])
    return {"strength": chosen, "refused": refused}


def _matrix(bench: Workbench, consumer: fx.Node, pair: Pair) -> torch.Tensor:
    """Return a consumer's weight as [outputs * taps, channels]: what each input channel is multiplied with."""
    weight = get_constant(bench.graph, operands(consumer)[1])
    assert weight is not None
    if weight.shape[1] != pair.channels:  # grouped: zeros where a group does not read a channel
        full = torch.zeros(weight.shape[0], pair.channels, *weight.shape[2:])
        groups = pair.channels // weight.shape[1]
        for o in range(weight.shape[0]):
            g = o // (weight.shape[0] // groups)
            full[o, g * weight.shape[1] : (g + 1) * weight.shape[1]] = weight[o]
        weight = full
    return weight.movedim(1, -1).reshape(-1, pair.channels)


METHOD = Method(
    name="smooth",
    summary="SmoothQuant: move large activation channels into the weights that read them, where that is exact.",
    label="folded",
    acts="before",
    source="Xiao et al. 2023, SmoothQuant, eq. 4; the strength searched per layer for the least output error",
    arguments={"strength": -1.0, "images": 32, "rows": 512},
    run=run,
    unfit=lambda bench: None if find_pairs(bench)[0] else "no norm, conv or linear hands its channels on through exact ops only",
)
