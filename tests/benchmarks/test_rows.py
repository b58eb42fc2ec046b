"""A row of a benchmark that fails, hangs or needs too much memory says so and harms no other."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    from subprocess_runner import Forked

    return lambda seconds=60.0: Forked((), seconds=seconds, gigabytes=1.0)


def test_a_row_gives_its_result_or_its_error(processes):
    run = processes().run
    assert run(dict, [("passed", True)]) == {"passed": True}
    assert run(int, "x")["error"].startswith("ValueError: invalid literal")
    assert run(bytearray, 2 * 10**9) == {"error": "MemoryError: "}
    assert run(os._exit, 3) == {"error": "died: exit code 3"}


def test_a_row_that_hangs_is_stopped(processes):
    start = time.monotonic()
    assert processes(1.0).run(time.sleep, 60) == {"error": "stopped after 1 s"}
    assert time.monotonic() - start < 30
