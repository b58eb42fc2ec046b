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


def split(nodeid: str) -> tuple[str, str, str]:
    """Return file, test and case of a test's id.

    >>> split("tests/test_a.py::TestB::test_c[x::y]")
    ('tests/test_a.py', 'test_c', 'x::y')
    """
    place, _, case = nodeid.partition("[")
    file, _, test = place.partition("::")
    return file, test.rpartition("::")[2], case.removesuffix("]")


def mark_slow(items: list[pytest.Item]) -> None:
    """Give the cases of the table the mark."""
    files = table()
    for item in items:
        file, name, case = split(item.nodeid)
        cases = files.get(file, {}).get(name, [])
        if "*" in cases or case in cases:
            item.add_marker(pytest.mark.slow)


def unknown(nodeids: set[str]) -> list[str]:
    """Return the entries that no test has."""
    known = {split(n) for n in nodeids}
    tests = {place[:2] for place in known}
    return [
        f"{file}::{name}[{case}]"
        for file, names in table().items()
        for name, cases in names.items()
        for case in cases
        if ((file, name) not in tests if case == "*" else (file, name, case) not in known)
    ]
