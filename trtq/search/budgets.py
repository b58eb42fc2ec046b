"""Budgets as a person writes them: ``size=1.9MB``, ``size=0.2``, ``bitops=0.1``, ``energy=0.15``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from trtq.errors import UsageError, suggest

UNITS = {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KIB": 1024.0, "MIB": 1024.0**2}
NAMES = ("size", "bitops", "energy")
FORM = re.compile(r"^([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)$")


def read_budgets(texts: Sequence[str], full: Mapping[str, float]) -> dict[str, float]:
    """Return each budget as an absolute number; a ratio is of the float model.

    Args:
        texts: as on the command line.
        full: what the float model costs, by budget name: bytes, BitOps, and S1's energy unit.

    Raises:
        UsageError: an unknown budget (the nearest is suggested), a missing or unknown unit, a ratio out of range, a repeated budget.
    """
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().lower()
        if name not in NAMES:
            raise UsageError(f"Unknown budget {name!r}", f"known are {', '.join(NAMES)}", suggest(name, NAMES))
        parts = FORM.match(value.strip()) if equals else None
        if parts is None:
            raise UsageError(f"Cannot read the budget {text!r}", "expected NAME=NUMBER", f"Write it like {name}=0.2")
        if name in found:
            raise UsageError(f"The budget {name} was given twice", mend="Name it once")
        number, unit = float(parts[1]), parts[2].upper()
        found[name] = number * _unit(name, unit, text) if unit else _ratio(name, number, text) * full[name]
    return found


def _unit(name: str, unit: str, text: str) -> float:
    if name != "size":
        raise UsageError(f"Cannot read the budget {text!r}", f"{name} is a ratio of the float model and has no unit", f"Write {name}=0.2")
    if unit not in UNITS:
        raise UsageError(f"Unknown unit in {text!r}", f"known are {', '.join(UNITS)}", suggest(unit, UNITS))
    return UNITS[unit]


def _ratio(name: str, number: float, text: str) -> float:
    if not 0.0 < number <= 1.0:
        mend = "Give a unit, such as size=1.9MB, or a ratio, such as size=0.2" if name == "size" else f"Write it like {name}=0.2"
        raise UsageError(f"Cannot read the budget {text!r}", "without a unit it is a ratio of the float model, above 0 and at most 1", mend)
    return number
