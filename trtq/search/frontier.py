"""The measured models that no other one beats on both counts."""

from __future__ import annotations

from collections.abc import Sequence


def dominated(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Return, for each (cost, accuracy), whether another point dominates it.

    A dominating point costs no more, is no less accurate, and is better in one of the two.

    >>> dominated([(1.0, 90.0), (2.0, 95.0), (2.0, 94.0), (3.0, 95.0), (1.0, 90.0)])
    [False, False, True, True, False]
    """
    return [
        any(c <= cost and a >= accuracy and (c < cost or a > accuracy) for c, a in points)
        for cost, accuracy in points
    ]
