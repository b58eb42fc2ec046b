"""Bias correction: take out of each channel the mean error that quantization put in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from trtq.graph.naming import node_name
from trtq.methods.base import Method, Workbench, channel_axis, needs_batches, weight_and_bias
from trtq.quant.fake_quantize import along_axis


def _channel_means(value: torch.Tensor, axis: int) -> torch.Tensor:
    dims = [d for d in range(value.ndim) if d != axis % value.ndim]
    return value.mean(dims, dtype=torch.float64)


class _Record(fx.Interpreter):
    """Runs the float graph and keeps each layer's channel means."""

    def __init__(self, graph: fx.GraphModule, layers: set[str]) -> None:
        super().__init__(graph)
        self.layers, self.means = layers, dict[str, torch.Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.layers:
            self.means[n.name] = _channel_means(result, channel_axis(n))
        return result


class _Correct(_Record):
    """Runs the simulation; each layer's output is moved to the float means before what follows sees it."""

    def __init__(self, graph: fx.GraphModule, wanted: Mapping[str, torch.Tensor]) -> None:
        super().__init__(graph, set(wanted))
        self.wanted, self.shifts = wanted, dict[str, torch.Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        result = fx.Interpreter.run_node(self, n)
        if n.name in self.wanted:
            axis = channel_axis(n)
            shift = (self.wanted[n.name] - _channel_means(result, axis)).float()
            self.shifts[n.name] = shift
            result = result + along_axis(shift, result.ndim, axis)
        return result


def run(bench: Workbench, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Correct the biases in the encodings, layer by layer in graph order, each on inputs already corrected."""
    batch = torch.cat(list(bench.images(int(arguments["images"]))))
    constants = bench.made.constants
    layers = {n.name: weight_and_bias(bench.graph, n)[1] for n, _ in bench.layers()}
    names = {n.name: node_name(n) for n, _ in bench.layers()}
    # A bias that two layers read cannot follow both.
    able = {name for name, bias in layers.items() if bias is not None and len(bias.users) == 1}
    with torch.inference_mode():
        record = _Record(bench.graph, able)
        record.run(batch)
        correct = _Correct(bench.simulated(), record.means)
        correct.run(batch)
    largest = 0.0
    for name, shift in correct.shifts.items():
        bias = layers[name]
        assert bias is not None
        constants[str(bias.target)] = bench.made.constant(bench.graph, bias) + shift
        largest = max(largest, float(shift.abs().max()))
    left = [names[n] for n in layers if n not in able]
    return {"layers": len(able), "largest_shift": largest, "images": len(batch), "left_alone": left}


METHOD = Method(
    name="bias-correction",
    summary="Shift each layer's bias so that its output channels keep their float means.",
    label="folded",
    acts="after",
    source="Nagel et al. 2019, Data-Free Quantization, section 4.2 (empirical form)",
    arguments={"images": 64},
    run=run,
    unfit=lambda bench: (
        needs_batches(bench)
        or (
            None
            if any(weight_and_bias(bench.graph, n)[1] is not None for n, _ in bench.layers())
            else "none of its quantized layers has a bias to correct"
        )
    ),
)
