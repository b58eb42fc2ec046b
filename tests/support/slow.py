"""The cases that tests/slow.toml marks as slow."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests/slow.toml"
COLLECTED = pytest.StashKey[set[str]]()  # ids of all tests that pytest found


def table() -> dict[str, dict[str, list[str]]]:
    """Return cases by test, by file."""
    return msgspec.toml.decode(TABLE.read_bytes(), type=dict[str, dict[str, list[str]]])


def mark_slow(items: list[pytest.Item]) -> None:
    """Give the cases of the table the mark."""
    files = table()
    for item in items:
        file, _, place = item.nodeid.partition("::")
        name, _, case = place.rpartition("::")[2].partition("[")
        cases = files.get(file, {}).get(name, [])
        if "*" in cases or case.removesuffix("]") in cases:
            item.add_marker(pytest.mark.slow)


def unknown(nodeids: set[str]) -> list[str]:
    """Return the entries that no test has."""
    tests = {n.partition("[")[0] for n in nodeids}
    entries = [
        (f"{file}::{name}", case)
        for file, names in table().items()
        for name, cases in names.items()
        for case in cases
    ]
    return [
        f"{test}[{case}]"
        for test, case in entries
        if (test not in tests if case == "*" else f"{test}[{case}]" not in nodeids)
    ]
