"""Softmax without an exponential.

A piecewise-linear, order-preserving function of the distance to the largest logit takes its place.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import nnls
from torch import fx

from trtq.errors import UsageError
from trtq.graph.naming import node_name
from trtq.graph.nodes import insert_call, operands
from trtq.methods.base import Method, MethodContext, Report, needs
from trtq.methods.efficientquant import attention_softmaxes

aten = torch.ops.aten
Floats = npt.NDArray[np.float64]
FURTHEST = -20.0  # e^-20 is 2e-9: what is further away adds nothing
GRID, STARTS = 512, 48


class Arguments(msgspec.Struct, frozen=True):
    """Arguments for ``--method-arg``.

    Attributes:
        segments: linear pieces of the function, 1 or more.
        images: calibration images whose logits are looked at.
    """

    segments: int = 8
    images: int = 32


def fit_exponential(low: float, segments: int) -> tuple[Floats, Floats]:
    """Return a piecewise-linear function near e^x on [low, 0].

    The function is sum_k heights_k * clip((x - knots_k) / (knots_k+1 - knots_k), 0, 1).

    Heights are not negative, so the function never falls and the order of the logits remains. They
    are a least-squares fit on an even grid. Knots are evenly in e^(x/2), where all linear pieces of
    an exponential have the same error. The position of the first knot is searched for the least
    error. With one segment the function is S2's clip(a x + b, l, u); l is 0, so that what a mask
    hides remains hidden.

    Args:
        low: the smallest distance to the largest logit that occurs, less than 0.
        segments: 1 or more.

    Returns:
        The knots, float64 [segments + 1], ascending to 0, and the heights, float64 [segments].

    >>> knots, heights = fit_exponential(-8.0, 4)
    >>> bool(abs(heights.sum() - 1.0) < 0.05), len(knots)
    (True, 5)
    """
    x = np.linspace(low, 0.0, GRID)
    wanted = np.exp(x)
    best: tuple[float, Floats, Floats] | None = None
    for first in np.linspace(low - 3.0, 0.0, STARTS, endpoint=False):
        knots = 2.0 * np.log(np.linspace(np.exp(first / 2.0), 1.0, segments + 1))
        heights, residual = nnls(_ramps(x, knots), wanted)
        if best is None or residual < best[0]:
            best = float(residual), knots, heights
    assert best is not None
    return best[1:]


def _ramps(x: Floats, knots: Floats) -> Floats:
    """Return how far each value is along each piece, 0 to 1, float64 [values, segments]."""
    ramps: Floats = np.clip((x[:, None] - knots[:-1]) / np.diff(knots), 0.0, 1.0)
    return ramps


class _Distances(fx.Interpreter):
    """Keeps how far below the largest logit each softmax's inputs reach."""

    def __init__(self, graph: fx.GraphModule, softmaxes: set[fx.Node]) -> None:
        super().__init__(graph)
        self.softmaxes, self.lowest = softmaxes, dict.fromkeys((n.name for n in softmaxes), 0.0)

    def run_node(self, n: fx.Node) -> Any:
        if n in self.softmaxes:
            x, dim = self.fetch_args_kwargs_from_env(n)[0][:2]
            distance = x - x.amax(dim=dim, keepdim=True)
            self.lowest[n.name] = min(
                self.lowest[n.name], float(distance.clamp_min(FURTHEST).min())
            )
        return super().run_node(n)


def _replace(context: MethodContext, softmax: fx.Node, knots: Floats, heights: Floats) -> int:
    """Replace a softmax by the approximation; return the number of ops it takes."""
    x, dim = operands(softmax)[:2]
    new_nodes: list[fx.Node] = []

    def call(target: Any, *args: Any) -> fx.Node:
        node = insert_call(context.graph, softmax, target, *args)
        node.meta["trtq_name"] = f"{node_name(softmax)}.linear_{len(new_nodes)}"
        node.meta["trtq_module"] = softmax.meta.get("trtq_module", "")
        node.meta["trtq_part"] = True  # of one op: no block ends here
        new_nodes.append(node)
        return node

    distance = call(aten.sub.Tensor, x, call(aten.amax.default, x, [dim], True))
    total: fx.Node | None = None
    for start, end, height in zip(knots[:-1], knots[1:], heights, strict=True):
        if height <= 0.0:
            continue
        slope = height / (end - start)
        ramp = call(
            aten.add.Tensor, call(aten.mul.Tensor, distance, float(slope)), float(-start * slope)
        )
        piece = call(aten.clamp.default, ramp, 0.0, float(height))
        total = piece if total is None else call(aten.add.Tensor, total, piece)
    assert total is not None  # e^0 = 1: some height is positive
    result = call(aten.div.Tensor, total, call(aten.sum.dim_IntList, total, [dim], True))
    result.meta.update(trtq_is_softmax=True, trtq_name=node_name(softmax))
    context.replace(softmax, result)
    context.graph.graph.erase_node(softmax)
    return len(new_nodes)


def run(context: MethodContext, arguments: Arguments) -> Report:
    """Fit and replace every softmax of an attention.

    Returns:
        Numbers of ``softmaxes``, ``segments`` and ``extra_ops``, and ``largest_error_of_exp``.

    Raises:
        UsageError: fewer than 1 segment.
    """
    segments = arguments.segments
    if segments < 1:
        raise UsageError(f"Cannot use integer-softmax.segments={segments}", "expected 1 or more")
    softmaxes = attention_softmaxes(context.graph)
    watch = _Distances(context.graph, set(softmaxes))
    with torch.inference_mode():
        for batch in context.images(arguments.images):
            watch.run(*batch)
    ops, worst = 0, 0.0
    for softmax in softmaxes:
        low = min(watch.lowest[softmax.name], -1e-3)  # rows of equal logits only: any slope will do
        knots, heights = fit_exponential(low, segments)
        x = np.linspace(low, 0.0, GRID)
        worst = max(worst, float(np.abs(_ramps(x, knots) @ heights - np.exp(x)).max()))
        ops += _replace(context, softmax, knots, heights)
    context.graph.graph.lint()
    context.graph.recompile()
    return {
        "softmaxes": len(softmaxes),
        "segments": segments,
        "extra_ops": ops,
        "largest_error_of_exp": worst,
    }


METHOD = Method(
    name="integer-softmax",
    summary="Replace the exponential of attentions by an order-preserving piecewise-linear "
    "function.",
    label="ops",
    stage="before",
    source="S2, integer-only linear softmax: e^x = clip(a x + b, l, u), here with N segments "
    "fitted by least squares",
    arguments=Arguments(),
    run=run,
    not_applicable_reason=needs(
        (
            lambda context: attention_softmaxes(context.graph),
            "it has no attention; it is for transformers",
        )
    ),
    excludes=("repq",),
)
