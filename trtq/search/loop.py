"""The closed loop's arithmetic: a line of budgets from the tightest to none.

It looks for the point on the line where accuracy begins to hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

# Points on the line: the budgets that were asked for, and no budget at all.
AS_ASKED, NONE = 1.0, 2.0


def budgets_at(
    t: float, asked: Mapping[str, float], least: Mapping[str, float], most: Mapping[str, float]
) -> dict[str, float]:
    """Return the budgets at point ``t`` of the line.

    Point 0 is the narrowest widths, 1 what was asked for, 2 the widest widths.

    Args:
        t: 0 to 2.
        asked: by budget name.
        least: cost at the narrowest widths.
        most: cost at the widest widths; a budget above it stays as it is.

    >>> budgets_at(0.5, {"size": 10.0}, {"size": 4.0}, {"size": 20.0})
    {'size': 7.0}
    >>> budgets_at(1.5, {"size": 10.0}, {"size": 4.0}, {"size": 20.0})
    {'size': 15.0}
    """
    if t <= AS_ASKED:
        return {b: least[b] + t * (limit - least[b]) for b, limit in asked.items()}
    return {b: limit + (t - AS_ASKED) * max(0.0, most[b] - limit) for b, limit in asked.items()}


def smallest(holds: Callable[[float], bool], low: float, high: float, rounds: int) -> float:
    """Return the smallest point that was seen to hold, by bisection.

    The search starts between ``low``, which does not hold, and ``high``, which does. Measured
    accuracy is not quite monotonic: the result holds and a nearby point below it does not, but that
    is no proof that no point below it holds.

    Args:
        holds: measures a point.
        low: known not to hold, or the end of the line.
        high: known to hold.
        rounds: most measurements.
    """
    for _ in range(rounds):
        middle = (low + high) / 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return high
