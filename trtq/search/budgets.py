"""Budgets as a person writes them, and the line of budgets that a search walks.

Examples are ``size=1.9MB``, ``size=0.2``, ``bitops=0.1``, ``energy=0.15`` and
``latency@xavier=3ms``. The line leads from the tightest budgets to none: a search looks for the
point on it where accuracy begins to hold.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from trtq.errors import UsageError, suggest

LATENCY = "latency"
NAMES = ("size", "bitops", "energy")
UNITS = {
    "size": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 1024.0, "MIB": 1024.0**2},
    LATENCY: {"US": 1e-3, "MS": 1.0, "S": 1e3},
}
FORM = re.compile(r"^([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)$")
# Points on the line: the budgets that were asked for, and no budget at all.
AS_ASKED, NONE = 1.0, 2.0


def within(costs: Mapping[str, float], budgets: Mapping[str, float]) -> bool:
    """Whether every budget holds, but for rounding (1e-9 of the limit).

    Args:
        costs: by budget name; other costs do not count.
        budgets: absolute limits by name.
    """
    return not over(costs, budgets)


def over(costs: Mapping[str, float], budgets: Mapping[str, float]) -> list[str]:
    """Return the budgets that costs exceed by more than rounding (1e-9 of the limit).

    Args:
        costs: by budget name; other costs do not count.
        budgets: absolute limits by name.

    >>> over({"size": 10.0, "energy": 3.0}, {"size": 9.0, "energy": 3.0})
    ['size']
    """
    return [b for b, limit in budgets.items() if costs[b] > limit * (1 + 1e-9)]


def times(least: float, limit: float) -> str:
    """Return how many times as much must be allowed, with two decimals.

    The number is rounded up, so that a budget that is loosened by it can be met.

    Args:
        least: what the cheapest widths cost.
        limit: what is allowed, in the same unit.

    >>> times(1.001, 1.0), times(3.0, 2.0)
    ('1.01', '1.50')
    """
    return f"{math.ceil(round(100 * least / limit, 6)) / 100:.2f}"


def latency_devices(texts: Sequence[str]) -> list[str]:
    """Return the devices that budgets of latency name, each once.

    Args:
        texts: as on the command line.

    >>> latency_devices(["size=0.2", "latency@xavier=3ms"])
    ['xavier']
    """
    names = [text.partition("=")[0].strip().lower() for text in texts]
    return list(dict.fromkeys(n.partition("@")[2] for n in names if n.startswith(f"{LATENCY}@")))


class Budget(NamedTuple):
    """One budget as written.

    Attributes:
        name: ``size``, ``bitops``, ``energy`` or ``latency@DEVICE``, lower case.
        number: as written, above 0.
        factor: of its unit: to bytes, or to milliseconds; None for a share of the float model,
            where ``number`` is at most 1.
    """

    name: str
    number: float
    factor: float | None

    def absolute(self, full: float) -> float:
        """Return bytes, BitOps, S1's energy unit or milliseconds.

        Args:
            full: what the float model costs, in that unit; only shares read it.

        >>> Budget("size", 1.5, 1e6).absolute(0.0), Budget("energy", 0.5, None).absolute(8.0)
        (1500000.0, 4.0)
        """
        return self.number * (full if self.factor is None else self.factor)


def parse_budgets(texts: Sequence[str]) -> list[Budget]:
    """Return budgets as they are written; no model is needed for that.

    Args:
        texts: as on the command line.

    Raises:
        UsageError: an unknown budget (the nearest is suggested), a missing or unknown unit, a ratio
            out of range, a repeated budget.
    """
    budgets: dict[str, Budget] = {}
    for text in texts:
        budget = _parse_budget(text)
        if budget.name in budgets:
            raise UsageError(f"The budget {budget.name} was given twice", hint="Name it once")
        budgets[budget.name] = budget
    return list(budgets.values())


def _parse_budget(text: str) -> Budget:
    name, _, value = text.partition("=")
    name = name.strip().lower()
    _require_known(name, text)
    example = f"Write it like {_example(name)}"
    parts = FORM.match(value.strip())
    if parts is None:
        raise UsageError(f"Cannot read the budget {text!r}", "expected NAME=NUMBER", example)
    number = float(parts[1])
    unit = parts[2].upper()
    if number <= 0:
        raise UsageError(f"Cannot read the budget {text!r}", "it must be greater than 0", example)
    if unit:
        return Budget(name, number, _unit(name, unit, text))
    return Budget(name, _ratio(name, number, text), None)


def _require_known(name: str, text: str) -> None:
    kind, at, device = name.partition("@")
    if kind == LATENCY and not device:
        raise UsageError(
            f"The budget {text!r} names no device",
            "a latency is one on a device",
            "Write it like latency@xavier=3ms",
        )
    if name not in NAMES and (kind, at) != (LATENCY, "@"):
        known = [*NAMES, f"{LATENCY}@DEVICE"]
        raise UsageError(
            f"Unknown budget {name!r}", f"known are {', '.join(known)}", suggest(name, NAMES)
        )


def read_budgets(texts: Sequence[str], full: Mapping[str, float]) -> dict[str, float]:
    """Return each budget as an absolute number; a ratio is of the float model.

    Args:
        texts: as on the command line.
        full: what the float model costs, by budget name: bytes, BitOps, S1's energy unit,
            milliseconds on a device.

    Raises:
        UsageError: as ``parse_budgets`` has it.
    """
    return {b.name: b.absolute(full[b.name]) for b in parse_budgets(texts)}


def _example(name: str) -> str:
    return f"{name}=3ms" if name.startswith(LATENCY) else f"{name}=0.2"


def _unit(name: str, unit: str, text: str) -> float:
    units = UNITS.get(name.partition("@")[0])
    if units is None:
        raise UsageError(
            f"Cannot read the budget {text!r}",
            f"{name} is a ratio of the float model and has no unit",
            f"Write {name}=0.2",
        )
    if unit not in units:
        raise UsageError(
            f"Unknown unit in {text!r}", f"known are {', '.join(units)}", suggest(unit, units)
        )
    return units[unit]


def _ratio(name: str, number: float, text: str) -> float:
    if not 0.0 < number <= 1.0:
        with_unit = {"size": "size=1.9MB", LATENCY: f"{name}=3ms"}.get(name.partition("@")[0])
        hint = (
            f"Give a unit, such as {with_unit}, or a ratio, such as {name}=0.2"
            if with_unit
            else f"Write it like {name}=0.2"
        )
        raise UsageError(
            f"Cannot read the budget {text!r}",
            "without a unit it is a ratio of the float model, above 0 and at most 1",
            hint,
        )
    return number


def budgets_at(
    t: float, budgets: Mapping[str, float], least: Mapping[str, float], most: Mapping[str, float]
) -> dict[str, float]:
    """Return the budgets at point ``t`` of the line.

    Point 0 is the narrowest widths, 1 what was asked for, 2 the widest widths.

    Args:
        t: 0 to 2.
        budgets: by budget name.
        least: cost at the narrowest widths.
        most: cost at the widest widths; a budget above it is not changed.

    >>> budgets_at(0.5, {"size": 10.0}, {"size": 4.0}, {"size": 20.0})
    {'size': 7.0}
    >>> budgets_at(1.5, {"size": 10.0}, {"size": 4.0}, {"size": 20.0})
    {'size': 15.0}
    """
    if t <= AS_ASKED:
        return {b: least[b] + t * (limit - least[b]) for b, limit in budgets.items()}
    return {b: limit + (t - AS_ASKED) * max(0.0, most[b] - limit) for b, limit in budgets.items()}


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
