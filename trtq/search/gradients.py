"""Metrics from the loss: the gradient under perturbed weights (S4), the Hessian's trace (S2)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property, partial

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import fx

from trtq.graph.feed import Feed, joined, outputs_of
from trtq.graph.nodes import operands
from trtq.quant.formats import BitConfig
from trtq.search.layers import Layer
from trtq.search.sensitivity import (
    Measured,
    Sensitivity,
    SensitivityContext,
    WithWeights,
    require_finite,
)

STABLE_TAU = 0.95
FEWEST_PROBES = 10


def _runs(context: SensitivityContext) -> list[tuple[Feed, Feed]]:
    """Return what is run at once with what is wanted: everything, or one sample after another."""
    if context.one_by_one:
        return list(context.batches())
    inputs, wanted = zip(*context.batches(), strict=True)
    return [(joined(inputs), joined(wanted))]


def _loss(
    context: SensitivityContext, runner: fx.Interpreter, runs: Sequence[tuple[Feed, Feed]]
) -> torch.Tensor:
    """Return the mean loss over the runs, which have as many samples each."""
    losses = [context.loss(outputs_of(runner.run(*feed)), wanted) for feed, wanted in runs]
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _readers(layers: Sequence[Layer]) -> list[int]:
    """Return, for each layer, how many layers read its weight.

    A metric of a weight is one of all its readers together: each of them gets its part, so that the
    sum over the layers that share a width counts it once.
    """
    read = Counter(operands(layer.node)[1] for layer in layers)
    return [read[operands(layer.node)[1]] for layer in layers]


def gradient(context: SensitivityContext) -> Measured:
    """Return S_l, the mean over N trials of ||grad of the loss in W'_l||_1 (S4 eq. 3.1-3.3).

    The weights are W'_l = W_l + dW with dW ~ N(0, (eps / ||W_l||)^2). As in S4's Algorithm 1, one
    layer is perturbed at a time. The L1 norm is a sum over its weights. The loss of a width of b
    bits is S_l / b (eq. 3.4).

    Args:
        context: its arguments give the number of trials N, epsilon and the seed; its loss needs
            what is wanted.

    Returns:
        ``loss`` by width and ``raw``, S_l, with its standard error over the trials; and the figures
        ``trials`` and ``epsilon``. A weight that several layers read is perturbed in all of them,
        and its loss is divided among them. Several processes return the layers of their own trials.

    Raises:
        CalibrationError: a gradient is NaN or infinite.
    """
    runs = _runs(context)
    trials = context.arguments.trials
    epsilon = context.arguments.epsilon
    seed = context.arguments.seed

    def slope(layer: Layer, noise: torch.Tensor) -> list[float]:
        weight = (layer.weight + noise).requires_grad_(True)
        runner = WithWeights(context.graph, {operands(layer.node)[1]: weight})
        loss = _loss(context, runner, runs)
        (gradients,) = torch.autograd.grad(loss, [weight])
        total = float(gradients.abs().sum())
        require_finite(total, "gradient", layer.name)
        return [total]

    context.begin("Gradients under perturbation", trials * len(context.layers))
    results, readers = {}, _readers(context.layers)
    for position, layer in enumerate(context.layers):
        generator = torch.Generator().manual_seed(seed * 100_003 + position)
        sigma = epsilon / max(float(torch.linalg.vector_norm(layer.weight)), 1e-12)
        norms = []
        for trial in range(trials):
            drawn = torch.randn(layer.weight.shape, generator=generator) * sigma
            noise = drawn.to(layer.weight.device)  # the same on every device
            norm = context.units.compute(
                f"gradient/{layer.name}/{trial}", partial(slope, layer, noise)
            )
            if norm is not None:
                norms.append(norm[0])
                context.advance(1)
        if not norms:
            continue  # another process's
        mean = float(np.mean(norms))
        error = float(np.std(norms, ddof=1) / math.sqrt(len(norms))) if len(norms) > 1 else None
        results[layer.name] = Sensitivity(
            loss={o: mean / BitConfig.parse(o).weight / readers[position] for o in layer.codings},
            raw=mean,
            stderr=error,
        )
    context.units.flush()
    return results, {"trials": trials, "epsilon": epsilon}


def hutchinson(
    loss: torch.Tensor,
    weights: list[torch.Tensor],
    generator: np.random.Generator,
    slopes: list[torch.Tensor] | None = None,
) -> list[float]:
    """Return one estimate of the trace of each diagonal block of the Hessian.

    The estimate is v_l . (H v)_l with independent Rademacher parts v_l. One Hessian-vector product
    serves all blocks: E[v_l v_m] = 0 for l != m, so the blocks off the diagonal average out.

    Args:
        loss: a scalar that depends twice differentiably on ``weights``; its graph is kept.
        weights: the blocks.
        generator: draws the probe.
        slopes: the gradient with its graph, when it is there already.

    Returns:
        One number for each block.
    """
    slopes = slopes or list(torch.autograd.grad(loss, weights, create_graph=True))
    probe = [_signs(w, generator) for w in weights]
    products = torch.autograd.grad(slopes, weights, grad_outputs=probe, retain_graph=True)
    return [
        float(torch.dot(v.flatten(), p.flatten())) for v, p in zip(probe, products, strict=True)
    ]


def _signs(like: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Return -1 or 1 with equal odds, from one bit of the generator each.

    Drawing whole integers would take a fifth of a probe's time.
    """
    count = like.numel()
    bits = np.unpackbits(generator.integers(0, 256, -(-count // 8), dtype=np.uint8))[:count]
    return torch.from_numpy(bits).to(like).mul_(2).sub_(1).reshape(like.shape)


def omega(trace: float, weight: torch.Tensor, quantized: torch.Tensor) -> float:
    """Return S2's term of one layer, Tr(H) ||Q(W) - W||^2; a negative trace counts as 0.

    Args:
        trace: of the layer's block of the Hessian.
        weight: W, float32.
        quantized: Q(W), in its shape.

    >>> omega(3.0, torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.0]))
    0.75
    """
    return max(trace, 0.0) * float((quantized - weight).square().sum())


def hessian(context: SensitivityContext) -> Measured:
    """Return Tr(H_l) ||Q(W_l) - W_l||^2 of each layer at each width (S2).

    The trace comes from Hutchinson's estimator. Probes stop early when the layers' order is stable:
    Kendall's tau between the two halves of the probes reaches 0.95.

    Args:
        context: its arguments give the most probes and the seed; its loss needs what is wanted.

    Returns:
        ``loss`` by width and ``raw``, the trace, with its standard error over the probes; and the
        figures ``probes``, ``asked`` and ``tau_of_halves``. The loss of a weight that several
        layers read is divided among them. Both are empty in a process that did no probe.

    Raises:
        CalibrationError: a trace is NaN or infinite.
    """
    probe = _Probe(context)
    count = context.arguments.probes
    estimates: list[list[float]] = []
    context.begin("Hessian probes", count)
    for k in range(count):
        traces = context.units.compute(
            f"hessian/{k}", partial(probe.traces, k), len(context.layers)
        )
        if traces is None:
            continue
        estimates.append(traces)
        context.advance(1)
        if len(estimates) >= FEWEST_PROBES and _agreement(estimates) >= STABLE_TAU:
            break
    context.units.flush()
    if not estimates:
        return {}, {}  # every probe is another process's
    table = np.array(estimates)
    means = table.mean(axis=0)
    errors: list[float | None] = [None] * len(means)
    if len(table) > 1:
        errors = list((table.std(axis=0, ddof=1) / math.sqrt(len(table))).tolist())
    results = {}
    rows = zip(context.layers, means, errors, _readers(context.layers), strict=True)
    for layer, mean, error, readers in rows:
        losses = {
            o: omega(float(mean), layer.weight, c.weight) / readers
            for o, c in layer.codings.items()
        }
        results[layer.name] = Sensitivity(loss=losses, raw=float(mean), stderr=error)
    return results, {
        "probes": len(estimates),
        "asked": count,
        "tau_of_halves": round(_agreement(estimates), 4),
    }


class _Probe:
    """Estimates the trace of every layer's block; the loss and its gradient are made once."""

    def __init__(self, context: SensitivityContext) -> None:
        self.context = context
        # A weight that two layers read is one variable in both places.
        self.variables: dict[fx.Node, torch.Tensor] = {}
        self.weights = [
            self.variables.setdefault(
                operands(layer.node)[1], layer.weight.clone().requires_grad_(True)
            )
            for layer in context.layers
        ]

    @cached_property
    def loss(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The loss over all images, and its gradient with its graph."""
        runner = WithWeights(self.context.graph, self.variables)
        loss = _loss(self.context, runner, _runs(self.context))
        return loss, list(torch.autograd.grad(loss, self.weights, create_graph=True))

    def traces(self, k: int) -> list[float]:
        """Return the estimate of probe ``k`` for each layer."""
        generator = np.random.default_rng([self.context.arguments.seed, k])
        loss, slopes = self.loss
        values = hutchinson(loss, self.weights, generator, slopes)
        for layer, value in zip(self.context.layers, values, strict=True):
            require_finite(value, "Hessian", layer.name)
        return values


def _agreement(estimates: list[list[float]]) -> float:
    """Return Kendall's tau between the means of the even and of the odd probes, -1 to 1.

    It is 1 where there is nothing to order: one probe, one layer, or equal estimates.
    """
    if len(estimates) < 2 or len(estimates[0]) < 2:
        return 1.0
    table = np.array(estimates)
    tau = float(kendalltau(table[::2].mean(axis=0), table[1::2].mean(axis=0)).statistic)
    return tau if math.isfinite(tau) else 1.0
