"""QADS: scale each input channel of a layer by a searched factor.

The factor is the one with the least error of the layer's output.
"""

from __future__ import annotations

import math

import msgspec
import torch
from torch import fx

from trtq.graph.naming import node_name
from trtq.graph.nodes import add_constant, get_constant, insert_call, operands
from trtq.methods.base import BATCHES, Method, MethodContext, Report, channel_axis, needs
from trtq.methods.pairs import LARGEST_FACTOR, find_pairs, fold_factors, input_factors
from trtq.methods.scaling import Watch, output_error, weight_matrix, widths
from trtq.methods.smooth import best_strength
from trtq.quant.fake_quantize import along_axis

aten = torch.ops.aten


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        images: calibration images whose channels are looked at.
        rows: positions of each activation that output errors are measured on.
        steps: of gradient descent for each activation.
        lr: its step, in log factors.
        explicit: dB of output error that a Mul in front of a layer must save; 0 or less: never a
            Mul.
    """

    images: int = 32
    rows: int = 256
    steps: int = 50
    lr: float = 0.05
    explicit: float = 3.0


def search_factors(
    rows: torch.Tensor,
    amax: torch.Tensor,
    weights: list[torch.Tensor],
    bits: tuple[int, int],
    *,
    steps: int,
    lr: float,
) -> tuple[torch.Tensor, float, float]:
    """Return the factors of one layer's input with the least output error.

    Starts from the best SmoothQuant factors and follows the gradient of the output error in log
    factors (straight-through rounding); the best factors met on the way are kept, so the result is
    never worse than either start.

    Args:
        rows: sampled inputs, float32 [rows, C].
        amax: largest magnitude of each channel, float32 [C].
        weights: of the layers that read them, float32 [outputs * taps, C].
        bits: of the activation and of the weights.
        steps: of gradient descent.
        lr: its step, in log factors.

    Returns:
        The factors, float32 [C]; the squared error with them, and without.
    """
    rows = rows.clone()  # made under inference mode: autograd needs a tensor of its own
    plain = float(output_error(rows, amax, weights, torch.ones_like(amax), bits))
    _, factors = best_strength(rows, amax, weights, bits)
    best, best_error = factors, float(output_error(rows, amax, weights, factors, bits))
    if plain == 0.0:
        return torch.ones_like(amax), plain, plain
    log = factors.log().clone().requires_grad_(True)
    optimizer = torch.optim.Adam([log], lr=lr)
    for _ in range(steps):
        error = output_error(rows, amax, weights, log.exp(), bits)
        value = float(error.detach())
        if value < best_error:
            best, best_error = log.detach().exp().clone(), value
        optimizer.zero_grad()
        torch.autograd.backward(error / plain)
        optimizer.step()
    return best.clamp(1.0 / LARGEST_FACTOR, LARGEST_FACTOR), best_error, plain


def _others(context: MethodContext, taken: set[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Return the activations that no fold reaches, with their readers.

    The readers are the quantized layers that read the activation and can take factors.
    """
    quantized = {q.consumer: q for q in context.placement.active if q.role == "input"}
    readers: dict[fx.Node, list[fx.Node]] = {}
    for node, _ in context.layers():
        weight = operands(node)[1]
        own = get_constant(context.graph, weight) is not None and len(weight.users) == 1
        if (
            node not in taken
            and node in quantized
            and own
            and quantized[node].source is operands(node)[0]
        ):
            readers.setdefault(operands(node)[0], []).append(node)
    return readers


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Search the factors of every input; fold them where that is exact.

    Elsewhere the factors are multiplied in where it pays.

    Returns:
        ``gain_db`` by layer, ``explicit``: layers with a Mul in front, ``refused``: why layers have
        no pair, and the ``label`` that follows.
    """
    pairs, refused = find_pairs(context)
    threshold = arguments.explicit
    others = _others(context, {c for p in pairs for c in p.consumers}) if threshold > 0 else {}
    readers = {p.activation: list(p.consumers) for p in pairs} | others
    watch = Watch(
        context.graph,
        {a.name: channel_axis(c[0]) for a, c in readers.items()},
        arguments.rows,
    )
    watch.over(context.images(arguments.images))
    folds = {p.activation: p for p in pairs}
    gains, explicit = dict[str, float](), list[str]()
    context.begin("Searching channel factors", len(readers))
    for activation, consumers in readers.items():
        amax = watch.amax[activation.name].clone()
        weights = [weight_matrix(context, c, amax.numel()) for c in consumers]
        factors, error, plain = search_factors(
            watch.samples[activation.name],
            amax,
            weights,
            widths(context, consumers[0]),
            steps=arguments.steps,
            lr=arguments.lr,
        )
        context.advance(1)
        gain = 10.0 * math.log10(plain / error) if error > 0 and plain > 0 else 0.0
        if activation in folds:
            fold_factors(context, folds[activation], factors)
        elif gain >= threshold:
            _multiply(context, activation, consumers, factors)
            explicit.append(node_name(consumers[0]))
        else:
            continue
        gains[node_name(consumers[0])] = round(gain, 2)
    context.graph.recompile()
    return {
        "gain_db": gains,
        "explicit": explicit,
        "refused": refused,
        "label": "ops" if explicit else "folded",
    }


def _multiply(
    context: MethodContext, activation: fx.Node, consumers: list[fx.Node], factors: torch.Tensor
) -> None:
    """Put a Mul by 1 / factors between an activation and its readers.

    The readers' weights take the factors up.
    """
    first = consumers[0]
    inverse = along_axis(1.0 / factors, activation.meta["val"].ndim, channel_axis(first))
    constant = add_constant(context.graph, f"{node_name(first)}.qads", inverse, before=first)
    scaled = insert_call(context.graph, first, aten.mul.Tensor, activation, constant)
    scaled.meta["val"] = activation.meta["val"]
    scaled.meta["trtq_name"] = f"{node_name(first)}.qads"
    scaled.meta["trtq_module"] = first.meta.get("trtq_module", "")
    for consumer in consumers:
        weight = context.constant(operands(consumer)[1])
        context.fold(operands(consumer)[1], weight * input_factors(weight, factors))
        consumer.update_arg(0, scaled)
        for q in context.placement.quantizers:
            if q.consumer is consumer and q.role == "input":
                q.source = scaled


METHOD = Method(
    name="qads",
    summary="QADS: scale each input channel for the least output error; folded where exact, an "
    "explicit Mul where it pays.",
    label="folded",
    stage="before",
    source="S2 section QADS, Y = (X / a)(a W); the search by gradient in log a is ours, the paper "
    "gives none",
    arguments=Arguments(),
    run=run,
    exact=True,
    excludes=("smooth",),
    not_applicable_reason=needs(
        BATCHES, (lambda context: context.layers(), "it has no quantized conv or linear")
    ),
)
