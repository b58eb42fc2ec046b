"""The metrics by name, and the one that combines two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from trtq.search.gradients import gradient, hessian
from trtq.search.outputs import jsd, l2
from trtq.search.sensitivity import Measured, Metric, Sensitivity, SensitivityContext


def _shares(results: Mapping[str, Sensitivity]) -> dict[str, dict[str, float]]:
    total = sum(v for s in results.values() for v in s.loss.values()) or 1.0
    return {name: {o: v / total for o, v in s.loss.items()} for name, s in results.items()}


def combined(context: SensitivityContext) -> Measured:
    """Return the geometric mean of the Hessian's and the divergence's share of the total.

    This is S2's Algorithm 1, which leaves its f open: loss = sqrt(h * d), where h and d are the
    loss of a layer at a width by :func:`hessian` and by :func:`jsd`, each divided by its sum over
    all layers and widths.

    Args:
        context: its loss needs what is wanted.

    Returns:
        ``loss`` by width, 0 to 1, with the largest as ``raw``; and the figures of both metrics.

    Raises:
        CalibrationError: a trace or a divergence is NaN or infinite.
    """
    curvature, probes = hessian(context)
    divergence, passes = jsd(context)
    first = _shares(curvature)
    second = _shares(divergence)
    results = {}
    for name, shares in first.items():
        losses = {o: math.sqrt(v * second[name][o]) for o, v in shares.items()}
        results[name] = Sensitivity(loss=losses, raw=max(losses.values()))
    return results, {**probes, **passes}


METRICS: Mapping[str, Metric] = {
    "l2": l2,
    "gradient": gradient,
    "hessian": hessian,
    "jsd": jsd,
    "combined": combined,
}
IN_PIECES = frozenset(METRICS) - {"l2"}  # what several processes can share
NEEDS_TARGETS = frozenset({"gradient", "hessian", "combined"})
