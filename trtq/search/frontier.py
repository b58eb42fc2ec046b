"""The measured models that no other one beats on both counts."""

from __future__ import annotations

import math
from collections.abc import Sequence


def dominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return, for each (cost, accuracy), whether another point dominates it.

    A dominating point costs no more, is no less accurate, and is better in one of the two.

    Args:
        points: in any order; equal ones do not dominate each other.

    >>> dominated([(1.0, 90.0), (2.0, 95.0), (2.0, 94.0), (3.0, 95.0), (1.0, 90.0)])
    [False, False, True, True, False]
    """
    best: dict[float, float] = {}  # accuracy at each cost
    for cost, accuracy in points:
        best[cost] = max(accuracy, best.get(cost, accuracy))
    cheaper, below = -math.inf, dict[float, float]()  # the best at any lower cost
    for cost in sorted(best):
        below[cost], cheaper = cheaper, max(cheaper, best[cost])
    return [below[c] >= a or best[c] > a for c, a in points]
