"""tests/slow.toml names cases that exist."""

from __future__ import annotations

import pytest

from tests.support.slow import COLLECTED, table, unknown


def test_every_slow_case_is_there(request):
    ids = request.config.stash[COLLECTED]
    files = {i.partition("::")[0] for i in ids}
    if any("::" in a for a in request.config.args) or not files.issuperset(table()):
        pytest.skip("only a part of the tests was collected")
    assert unknown(ids) == []


def test_a_case_that_is_not_there_is_named():
    file, names = next(iter(table().items()))
    name, cases = next(iter(names.items()))
    rest = {f"{f}::{n}[{c}]" for f, ns in table().items() for n, cs in ns.items() for c in cs}
    assert unknown(rest) == []
    assert unknown(rest - {f"{file}::{name}[{cases[0]}]"}) == [f"{file}::{name}[{cases[0]}]"]
