"""How trained values move: optimizers, the gradient scaler of fp16, averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trtq.specs import FinetuneOptions
from trtq.train.run_state import Position
from trtq.train.training_graph import TrainingGraph


class Updates:
    """Moves the trained values of a graph.

    Args:
        spec: rates, optimizer, average.
        graph: what learns, on its device.

    Attributes:
        optimizers: of the weights, and of the ranges.
        scaler: of the gradients, with fp16.
        averages: of the trained weights, empty without; see :meth:`start_averages`.
    """

    def __init__(self, spec: FinetuneOptions, graph: TrainingGraph) -> None:
        self.spec = spec
        self.graph = graph
        device = next(iter(graph.module.parameters())).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.amp == "fp16")
        self.optimizers: list[torch.optim.Optimizer] = []
        if graph.trained:
            self.optimizers.append(_weight_optimizer(spec, graph))
        if graph.ranges:
            group = {"params": graph.ranges, "base": spec.lr_amax}
            self.optimizers.append(torch.optim.Adam([group], lr=spec.lr_amax))
        self.averages: list[torch.Tensor] = []

    def start_averages(self) -> None:
        """Average the trained weights from now on, where that is asked for."""
        if self.spec.ema:
            self.averages = [w.detach().clone() for w in self.graph.trained]

    def step_(self, factor: float) -> None:
        """Move everything by its gradient, and clear the gradients.

        Args:
            factor: of the learning rates.
        """
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base"] * factor
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        with torch.no_grad():
            for average, weight in zip(self.averages, self.graph.trained, strict=False):
                average.lerp_(weight, 1.0 - self.spec.ema)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights for a while."""
        weights = self.graph.trained if self.averages else []
        own = [w.detach().clone() for w in weights]
        with torch.no_grad():
            for weight, average in zip(weights, self.averages, strict=True):
                weight.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(weights, own, strict=True):
                    weight.copy_(value)

    def store_scale(self, position: Position) -> None:
        """Write the state of the gradient scaler into a position."""
        position.scale = self.scaler.get_scale()
        position.growth = int(self.scaler.state_dict().get("_growth_tracker", 0))

    def load_scale_(self, position: Position) -> None:
        """Restore the state of the gradient scaler from a position."""
        if self.scaler.is_enabled():
            state = {"scale": position.scale, "_growth_tracker": position.growth}
            self.scaler.load_state_dict({**self.scaler.state_dict(), **state})


def _weight_optimizer(spec: FinetuneOptions, graph: TrainingGraph) -> torch.optim.Optimizer:
    """Return the optimizer of weights, biases and norms; the latter two do not decay."""
    matrices = [w for w in graph.trained if w.ndim > 1]
    vectors = [w for w in graph.trained if w.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": decay, "base": spec.lr}
        for weights, decay in ((matrices, spec.weight_decay), (vectors, 0.0))
        if weights
    ]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=spec.lr)
