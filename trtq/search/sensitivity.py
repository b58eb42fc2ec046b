"""Sensitivity metrics: each gives a loss for every layer at every width; one table names them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import fx

from trtq.errors import CalibrationError
from trtq.graph.feed import Feed
from trtq.search.layers import Layer
from trtq.search.work_cache import WorkCache
from trtq.tasks.distances import class_divergence


def class_loss(answers: Feed, wanted: Feed, ignored: int = -100) -> torch.Tensor:
    """Return the cross-entropy of a classifier [N, C] or of a segmenter [N, C, H, W].

    Args:
        answers: the first one is scores of classes.
        wanted: class indices [N] or [N, H, W].
        ignored: the class index that does not count.

    Returns:
        a mean over what counts; 0 when nothing does, such as an image whose mask is all ignored.
    """
    if not (wanted[0] != ignored).any():
        return answers[0].sum() * 0
    return torch.nn.functional.cross_entropy(answers[0], wanted[0], ignore_index=ignored)


def first_divergence(answers: Feed, reference: Feed) -> torch.Tensor:
    """Return the divergence of the first output, scores of classes, for each sample [N].

    Args:
        answers: of the model with a layer quantized.
        reference: of the float model.
    """
    return class_divergence(answers[0], reference[0])


class MetricArguments(msgspec.Struct, frozen=True, kw_only=True):
    """How much work a metric does.

    Attributes:
        probes: of the Hessian, at most.
        trials: perturbations of each layer, for ``gradient``.
        epsilon: their size: the standard deviation is epsilon over the L2 norm of the weight.
        seed: of perturbations and probes.
    """

    probes: int
    trials: int
    epsilon: float
    seed: int


@dataclass(slots=True, kw_only=True)
class SensitivityContext:
    """Context of a metric.

    Attributes:
        graph: captured, float.
        layers: with their codings.
        batches: call it for (inputs, what is wanted) batches; the same ones each time.
        units: finished pieces of work, kept on disk.
        begin: announce (what, how many).
        advance: a number of pieces is done.
        arguments: how much work to do.
        loss: of all outputs against what is wanted, one number: the mean over the samples.
        divergence: of all outputs from the float model's, a number a sample [N].
        one_by_one: the graph takes one sample at a time.
    """

    graph: fx.GraphModule
    layers: Sequence[Layer]
    batches: Callable[[], Iterable[tuple[Feed, Feed]]]
    units: WorkCache
    begin: Callable[[str, int], None]
    advance: Callable[[int], None]
    arguments: MetricArguments
    loss: Callable[[Feed, Feed], torch.Tensor] = class_loss
    divergence: Callable[[Feed, Feed], torch.Tensor] = first_divergence
    one_by_one: bool = False


@dataclass(slots=True, kw_only=True)
class Sensitivity:
    """One layer's result.

    Attributes:
        loss: by option label, 0 or above; comparable between layers, and summed over the layers
            that share a width.
        raw: what the paper's formula gives, before widths come in; None where it has no such
            number.
        stderr: standard error of ``raw``; None where it was computed once.
    """

    loss: dict[str, float]
    raw: float | None = None
    stderr: float | None = None


# By layer name the result, and figures about the measurement, such as the number of probes.
Measured = tuple[dict[str, Sensitivity], dict[str, float]]
Metric = Callable[[SensitivityContext], Measured]


class WithWeights(fx.Interpreter):
    """Runs the graph with other tensors in place of some weights.

    Args:
        graph: captured.
        weights: the tensor for each node that reads a constant.
    """

    def __init__(self, graph: fx.GraphModule, weights: Mapping[fx.Node, torch.Tensor]) -> None:
        super().__init__(graph)
        self.weights = weights

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        return self.weights[n] if n in self.weights else super().run_node(n)


def require_finite(value: float, what: str, layer: str) -> None:
    """Raise when a metric met NaN or infinity.

    Args:
        value: the number.
        what: it is, for the message, such as ``gradient``.
        layer: its name.

    Raises:
        CalibrationError: names the layer.
    """
    if not torch.isfinite(torch.tensor(value)):
        raise CalibrationError(
            f"The {what} of {layer} is NaN or infinite",
            "the loss or its gradient overflows",
            "Check the weights, the images and the labels",
        )
