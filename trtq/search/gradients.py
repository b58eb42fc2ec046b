"""Metrics from the loss: the gradient under perturbed weights (S4), the Hessian's trace (S2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.stats import kendalltau
from torch import fx

from trtq.graph.nodes import operands
from trtq.quant.formats import BitConfig
from trtq.search.sensitivity import (
    Sensitivity,
    SensitivityContext,
    WithWeights,
    cross_entropy,
    require_finite,
)

STABLE_TAU = 0.95
FEWEST_PROBES = 10


def _all_images(study: SensitivityContext) -> tuple[torch.Tensor, torch.Tensor]:
    images, targets = zip(*study.batches(), strict=True)
    return torch.cat(images), torch.cat(targets)


def gradient(study: SensitivityContext) -> tuple[dict[str, Sensitivity], dict[str, Any]]:
    """Return S_l, the mean over N trials of ||grad of the loss in W'_l||_1 (S4 eq. 3.1-3.3).

    The weights are W'_l = W_l + dW with dW ~ N(0, (eps / ||W_l||)^2). As in S4's Algorithm 1, one
    layer is perturbed at a time. The L1 norm is a sum over its weights. The loss of a width of b
    bits is S_l / b (eq. 3.4).
    """
    images, targets = _all_images(study)
    trials, epsilon = int(study.arguments["trials"]), float(study.arguments["epsilon"])
    study.begin("Gradients under perturbation", trials * len(study.layers))
    found = {}
    for position, layer in enumerate(study.layers):
        generator = torch.Generator().manual_seed(int(study.arguments["seed"]) * 100_003 + position)
        sigma = epsilon / max(float(torch.linalg.vector_norm(layer.weight)), 1e-12)
        norms = []
        for trial in range(trials):
            noise = torch.randn(layer.weight.shape, generator=generator) * sigma
            known = study.units.get(f"gradient/{layer.name}/{trial}")
            if known is None and not study.units.is_mine(f"gradient/{layer.name}/{trial}"):
                continue
            if known is None:
                weight = (layer.weight + noise).requires_grad_(True)
                runner = WithWeights(study.graph, {operands(layer.node)[1]: weight})
                (slope,) = torch.autograd.grad(cross_entropy(runner.run(images), targets), [weight])
                known = [float(slope.abs().sum())]
                require_finite(known[0], "gradient", layer.name)
                study.units.put(f"gradient/{layer.name}/{trial}", known)
            norms.append(known[0])
            study.advance(1)
        if not norms:
            continue  # another process's
        mean = float(np.mean(norms))
        error = float(np.std(norms, ddof=1) / math.sqrt(len(norms))) if len(norms) > 1 else None
        found[layer.name] = Sensitivity(
            loss={o: mean / BitConfig.parse(o).weight for o in layer.codings},
            raw=mean,
            stderr=error,
        )
    study.units.flush()
    return found, {"trials": trials, "epsilon": epsilon}


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
    return torch.from_numpy(bits).to(like.dtype).mul_(2).sub_(1).reshape(like.shape)


def omega(trace: float, weight: torch.Tensor, quantized: torch.Tensor) -> float:
    """Return S2's term of one layer, Tr(H) ||Q(W) - W||^2; a negative trace counts as 0."""
    return max(trace, 0.0) * float((quantized - weight).square().sum())


def hessian(study: SensitivityContext) -> tuple[dict[str, Sensitivity], dict[str, Any]]:
    """Return Tr(H_l) ||Q(W_l) - W_l||^2 of each layer at each width (S2).

    The trace comes from Hutchinson's estimator. Probes stop early when the layers' order is stable:
    Kendall's tau between the two halves of the probes reaches 0.95.
    """
    images, targets = _all_images(study)
    count, names = int(study.arguments["probes"]), [layer.name for layer in study.layers]
    # A weight that two layers read is one variable in both places.
    variables: dict[fx.Node, torch.Tensor] = {}
    weights = [
        variables.setdefault(operands(n.node)[1], n.weight.clone().requires_grad_(True))
        for n in study.layers
    ]
    estimates: list[list[float]] = []
    loss, slopes = None, None
    study.begin("Hessian probes", count)
    for k in range(count):
        known = study.units.get(f"hessian/{k}")
        if known is None and not study.units.is_mine(f"hessian/{k}"):
            continue
        if known is None or len(known) != len(names):
            if loss is None:
                loss = cross_entropy(WithWeights(study.graph, variables).run(images), targets)
                slopes = list(torch.autograd.grad(loss, weights, create_graph=True))
            generator = np.random.default_rng([int(study.arguments["seed"]), k])
            known = hutchinson(loss, weights, generator, slopes)
            for name, value in zip(names, known, strict=True):
                require_finite(value, "Hessian", name)
            study.units.put(f"hessian/{k}", known)
        estimates.append(known)
        study.advance(1)
        if len(estimates) >= FEWEST_PROBES and _agreement(estimates) >= STABLE_TAU:
            break
    study.units.flush()
    if not estimates:
        return {}, {}  # every probe is another process's
    table = np.array(estimates)
    means, errors = (
        table.mean(axis=0),
        table.std(axis=0, ddof=1) / math.sqrt(len(table))
        if len(table) > 1
        else np.full(len(names), np.nan),
    )
    found = {}
    for layer, mean, error in zip(study.layers, means, errors, strict=True):
        losses = {o: omega(float(mean), layer.weight, c.weight) for o, c in layer.codings.items()}
        found[layer.name] = Sensitivity(
            loss=losses, raw=float(mean), stderr=None if math.isnan(error) else float(error)
        )
    return found, {
        "probes": len(estimates),
        "asked": count,
        "tau_of_halves": round(_agreement(estimates), 4),
    }


def _agreement(estimates: list[list[float]]) -> float:
    if len(estimates) < 2 or len(estimates[0]) < 2:
        return 1.0
    table = np.array(estimates)
    tau = float(kendalltau(table[::2].mean(axis=0), table[1::2].mean(axis=0)).statistic)
    return tau if math.isfinite(tau) else 1.0
