"""Shared parts of the methods that scale input channels: Y = (X / s)(s W).

The error of a choice of s is measured on sampled rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import fx

from trtq.graph.feed import Feed
from trtq.graph.nodes import operands
from trtq.methods.base import MethodContext


class Watch(fx.Interpreter):
    """Keeps the largest magnitude of each channel of some activations, and some rows of them.

    Args:
        graph: captured.
        axes: the channel axis of each activation, by node name.
        rows: how many positions to keep of each.

    Attributes:
        amax: float32 [C], by node name.
        samples: float32 [rows, C], by node name.
    """

    def __init__(self, graph: fx.GraphModule, axes: Mapping[str, int], rows: int) -> None:
        super().__init__(graph)
        self.axes, self.rows = axes, rows
        self.amax = dict[str, torch.Tensor]()
        self.samples = dict[str, torch.Tensor]()

    def run_node(self, n: fx.Node) -> Any:
        """Run one node and keep what is watched."""
        result = super().run_node(n)
        if n.name in self.axes:
            flat = result.movedim(self.axes[n.name], -1).reshape(
                -1, result.shape[self.axes[n.name]]
            )
            amax = flat.abs().amax(dim=0)
            self.amax[n.name] = (
                torch.maximum(self.amax[n.name], amax) if n.name in self.amax else amax
            )
            if n.name not in self.samples:
                generator = torch.Generator().manual_seed(0)
                self.samples[n.name] = flat[
                    torch.randint(len(flat), (self.rows,), generator=generator)
                ].clone()
        return result

    def over(self, batches: Iterable[Feed]) -> Watch:
        """Run all batches and return itself.

        Args:
            batches: at least one; rows are sampled from the first.
        """
        with torch.inference_mode():
            for batch in batches:
                self.run(*batch)
        return self


def round_trip(x: torch.Tensor, amax: torch.Tensor, qmax: int) -> torch.Tensor:
    """Return ``x`` on symmetric codes, with straight-through gradients to ``x`` and ``amax``.

    Args:
        x: any shape.
        amax: shaped to divide ``x``.
        qmax: highest code; the lowest is ``-qmax - 1``.
    """
    step = (amax / qmax).clamp_min(torch.finfo(torch.float32).tiny)
    codes = (x / step).clamp(-qmax - 1, qmax)
    return (codes + (codes.round() - codes).detach()) * step


def output_error(
    rows: torch.Tensor,
    amax: torch.Tensor,
    weights: list[torch.Tensor],
    factors: torch.Tensor,
    bits: tuple[int, int],
) -> torch.Tensor:
    """Return the squared error of the layers' outputs on sampled rows, a sum, float32 [].

    Both operands are quantized after scaling by ``factors``.

    Args:
        rows: float32 [rows, C].
        amax: largest magnitude of each channel, float32 [C].
        weights: of the layers that read them, float32 [outputs * taps, C].
        factors: float32 [C], greater than 0.
        bits: of the activation and of the weights.
    """
    q_in, q_weight = (1 << (bits[0] - 1)) - 1, (1 << (bits[1] - 1)) - 1
    x = round_trip(rows / factors, (amax / factors).max(), q_in)
    total = torch.zeros((), device=rows.device)
    for weight in weights:
        w = weight * factors
        quantized = round_trip(w, w.abs().amax(dim=1, keepdim=True), q_weight)
        total = total + (x @ quantized.T - rows @ weight.T).square().sum()
    return total


def weight_matrix(context: MethodContext, consumer: fx.Node, channels: int) -> torch.Tensor:
    """Return a layer's weight as a matrix: a column is what one input channel is multiplied with.

    Args:
        context: the model.
        consumer: a conv or a linear; groups become blocks of a matrix with zeros between.
        channels: of its input.

    Returns:
        [outputs * taps, channels].
    """
    weight = context.constant(operands(consumer)[1])
    if weight.shape[1] != channels:  # grouped: zeros where a group does not read a channel
        full = weight.new_zeros(weight.shape[0], channels, *weight.shape[2:])
        groups = channels // weight.shape[1]
        for o in range(weight.shape[0]):
            g = o // (weight.shape[0] // groups)
            full[o, g * weight.shape[1] : (g + 1) * weight.shape[1]] = weight[o]
        weight = full
    return weight.movedim(1, -1).reshape(-1, channels)


def widths(context: MethodContext, consumer: fx.Node) -> tuple[int, int]:
    """Return the bits of a layer's input and of its weight, 8 for what is not quantized."""
    bits_by_role = {
        q.role: q.format.bits for q in context.placement.active if q.consumer is consumer
    }
    return bits_by_role.get("input", 8), bits_by_role.get("weight", 8)
