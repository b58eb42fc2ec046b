"""Golden files as text, and what differs between one and what trtq writes now.

Three ways to compare:

* ``exact``: everything is equal, digests of bytes (``sha256:...``) and all digits of numbers.
* ``near``: texts, names and counts are equal, numbers but for their last digits; digests and
  numbers that are noise by nature (``UNSTEADY``) do not count.
* ``loose``: the same, with the numbers of another processor. Its sums have another order; where
  the two best of many candidates are almost equal another one is taken, and training goes another
  way from its first step on.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from pathlib import Path
from typing import Any, Literal

How = Literal["exact", "near", "loose"]
RELATIVE = {"near": 1e-4, "loose": 0.3}
ABSOLUTE = {"near": 1e-6, "loose": 0.02}
DECIBELS = {"near": 0.05, "loose": 4.0}
PERCENT = {"near": 0.01, "loose": 26.0}  # two of eight images
NO_ERROR_DB = 90.0  # above it two answers differ by nothing but the order of sums
DIGEST = "sha256:"
# How far two runtimes differ, and what is counted where they do: rounding noise alone.
UNSTEADY = frozenset({"runtime_sqnr_db", "margin_db", "near_ties", "capture_max_rel_diff"})
IN_PERCENT = frozenset(
    {
        *("agreement", "equal", "equal_predictions", "top1", "top5", "reference_top1"),
        *("miou", "reference_miou", "pixel_accuracy", "score"),
    }
)
# Numbers in a text that were measured: with a unit, or with an exponent.
MEASURED = re.compile(r"-?\d+(?:\.\d+)?(?= ?(?:dB|%))|-?\d\.?\d*e[+-]\d\d")
FRACTIONS = re.compile(r"no difference|-?\d+\.\d+(?:e[+-]\d\d)?(?: ?dB| ?%)?|\d+ %")
ONE_LINE, LEAF_LINE = 100, 600
SHOWN = 20


def dump(value: Any, indent: int = 0) -> str:
    """Return JSON with one line for each thing that a reader looks at.

    >>> print(dump({"a": [1, 2], "b": {"c": "x" * 50, "d": {"e": "y" * 50}}}))
    {
      "a": [1, 2],
      "b": {
        "c": "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "d": {"e": "yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy"}
      }
    }
    """
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or len(line) + indent <= ONE_LINE:
        return line
    children = value.values() if isinstance(value, dict) else value
    flat = not any(isinstance(c, dict) or (isinstance(c, list) and len(c) > 2) for c in children)
    texts = isinstance(value, list) and all(isinstance(c, str) for c in value)
    if flat and not texts and indent and len(line) <= LEAF_LINE:
        return line
    pad = " " * (indent + 2)
    if isinstance(value, dict):
        parts = [f"{json.dumps(k)}: {dump(v, indent + 2)}" for k, v in value.items()]
    else:
        parts = [dump(v, indent + 2) for v in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    body = ",\n".join(pad + p for p in parts)
    return f"{opening}\n{body}\n{' ' * indent}{closing}"


def write(path: Path, content: Any) -> None:
    """Write a golden file."""
    path.write_text(dump(content) + "\n", encoding="utf-8")


def read(path: Path) -> Any:
    """Return the content of a golden file."""
    return json.loads(path.read_text(encoding="utf-8"))


def differences(expected: Any, actual: Any, *, how: How, place: str = "") -> list[str]:
    """Return a line or a few for each place where the two differ, in the order of the file.

    >>> differences({"a": 1.0, "b": "x"}, {"a": 1.00001, "b": "y"}, how="near")
    ["b\\n    expected: 'x'\\n    actual:   'y'"]
    >>> differences({"a": "sha256:00"}, {"a": "sha256:01"}, how="near")
    []
    """
    if isinstance(expected, dict) and isinstance(actual, dict):
        return _of_dicts(expected, actual, how=how, place=place)
    if isinstance(expected, list) and isinstance(actual, list):
        return _of_lists(expected, actual, how=how, place=place)
    if _same(expected, actual, how=how, key=place.rpartition(".")[2]):
        return []
    return [f"{place}\n    expected: {expected!r}\n    actual:   {actual!r}"]


def explain(path: Path, found: list[str], how: How) -> str:
    """Return the text of a failure: the first difference, then the others."""
    more = f"\n... and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    body = "\n".join(found[:SHOWN])
    return (
        f"{len(found)} differences ({how}) from {path.name}; the first is {body}{more}\n"
        "If the change is meant: TRTQ_GOLDEN=write pytest tests/test_golden.py, and read git diff."
    )


def _of_dicts(
    expected: dict[str, Any], actual: dict[str, Any], *, how: How, place: str
) -> list[str]:
    found = []
    for key in [*expected, *(k for k in actual if k not in expected)]:
        here = f"{place}.{key}" if place else key
        if key not in actual:
            found.append(f"{here}\n    expected: {_short(expected[key])}\n    actual:   not there")
        elif key not in expected:
            found.append(f"{here}\n    expected: not there\n    actual:   {_short(actual[key])}")
        elif how == "exact" or key not in UNSTEADY:
            found += differences(expected[key], actual[key], how=how, place=here)
    return found


def _of_lists(expected: list[Any], actual: list[Any], *, how: How, place: str) -> list[str]:
    if len(expected) == len(actual):
        pairs = enumerate(zip(expected, actual, strict=True))
        return [
            line
            for i, (e, a) in pairs
            for line in differences(e, a, how=how, place=f"{place}[{i}]")
        ]
    texts = [[v if isinstance(v, str) else json.dumps(v) for v in s] for s in (expected, actual)]
    changes = [
        line
        for line in difflib.unified_diff(*texts, "expected", "actual", lineterm="", n=1)
        if not line.startswith(("---", "+++"))
    ]
    counts = f"{place}\n    expected: {len(expected)} entries\n    actual:   {len(actual)} entries"
    return ["\n    ".join([counts, *changes[:SHOWN]])]


def _same(expected: Any, actual: Any, *, how: How, key: str) -> bool:
    if how == "exact" or isinstance(expected, bool) or isinstance(actual, bool):
        return type(expected) is type(actual) and bool(expected == actual)
    if isinstance(expected, str) and isinstance(actual, str):
        return _same_text(expected, actual, how)
    decibels = key.endswith("_db")
    if decibels and how == "loose":
        expected, actual = (NO_ERROR_DB if v is None else v for v in (expected, actual))
        expected, actual = min(expected, NO_ERROR_DB), min(actual, NO_ERROR_DB)
    if isinstance(expected, int) and isinstance(actual, int):
        return expected == actual
    if isinstance(expected, (int, float)) and isinstance(actual, (int, float)):
        limits = DECIBELS if decibels else PERCENT if key in IN_PERCENT else ABSOLUTE
        return math.isclose(expected, actual, rel_tol=RELATIVE[how], abs_tol=limits[how])
    return bool(expected == actual)


def _same_text(expected: str, actual: str, how: How) -> bool:
    """Whether two texts are equal but for digits of numbers that were measured."""
    if expected.startswith(DIGEST) and actual.startswith(DIGEST):
        return True
    if how == "loose":
        return FRACTIONS.sub("#", expected) == FRACTIONS.sub("#", actual)
    if MEASURED.sub("#", expected) != MEASURED.sub("#", actual):
        return False
    numbers = zip(MEASURED.findall(expected), MEASURED.findall(actual), strict=True)
    return all(abs(float(e) - float(a)) <= _last_digit(e) for e, a in numbers)


def _last_digit(number: str) -> float:
    """Return a little more than one unit of a number's last digit."""
    digits, _, exponent = number.partition("e")
    return 1.01 * 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 2 * ONE_LINE else f"{text[: 2 * ONE_LINE]}..."
