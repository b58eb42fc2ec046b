"""The metrics by name, and the one that combines two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trtq.search.gradients import gradient, hessian
from trtq.search.outputs import jsd, l2
from trtq.search.sensitivity import Metric, Sensitivity, SensitivityContext


def _shares(found: Mapping[str, Sensitivity]) -> dict[str, dict[str, float]]:
    total = sum(v for s in found.values() for v in s.loss.values()) or 1.0
    return {name: {o: v / total for o, v in s.loss.items()} for name, s in found.items()}


def combined(study: SensitivityContext) -> tuple[dict[str, Sensitivity], dict[str, Any]]:
    """Return the geometric mean of the Hessian's and the divergence's share of the total.

    This is S2's Algorithm 1, which leaves its f open.
    """
    curvature, said = hessian(study)
    divergence, more = jsd(study)
    first, second = _shares(curvature), _shares(divergence)
    found = {}
    for name, shares in first.items():
        losses = {o: math.sqrt(v * second[name][o]) for o, v in shares.items()}
        found[name] = Sensitivity(loss=losses, raw=max(losses.values()))
    return found, {**said, **more}


METRICS: Mapping[str, Metric] = {
    "l2": l2,
    "gradient": gradient,
    "hessian": hessian,
    "jsd": jsd,
    "combined": combined,
}
IN_PIECES = frozenset(METRICS) - {"l2"}  # what several processes can share
NEEDS_TARGETS = frozenset({"gradient", "hessian", "combined"})
