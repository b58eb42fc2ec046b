"""Boards over SSH on loopback."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.agent import old_python
from tests.support.boards import introduce, served
from trtq.testing.board import KINDS, StandInBoard


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder that an unprivileged user can reach: pytest's own are not."""
    folder = Path(tempfile.mkdtemp(prefix="trtq-boards-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def python36(place: Path) -> str | None:
    """A copy of Python 3.6 that an unprivileged user can start; None where there is none."""
    found = old_python()
    if found is None:
        return None
    prefix = Path(found).resolve().parent.parent
    skip = shutil.ignore_patterns(
        "test",
        "tests",
        "site-packages",
        "config-*",
        "idlelib",
        "lib2to3",
        "ensurepip",
        "__pycache__",
        "*.a",
    )
    shutil.copytree(prefix / "lib", place / "python36/lib", ignore=skip, symlinks=True)
    (place / "python36/bin").mkdir()
    shutil.copy(prefix / "bin/python3.6", place / "python36/bin/python3.6.bin")
    start = place / "python36/bin/python3.6"  # its library lies where it was built for
    start.write_text(
        f'#!/bin/bash\nLD_LIBRARY_PATH="{place}/python36/lib" exec -a "$0" "{start}.bin" "$@"\n'
    )
    start.chmod(0o755)
    return str(place / "python36/bin/python3.6")


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTQ_CONFIG", str(tmp_path / "config"))
    monkeypatch.setenv("TRTQ_HISTORY", str(tmp_path / "history.sqlite"))
    return tmp_path / "config"


@pytest.fixture(
    params=[
        pytest.param(k, marks=pytest.mark.slow) if k in ("xavier", "thor") else k for k in KINDS
    ]
)
def board(
    request: pytest.FixtureRequest, place: Path, python36: str | None
) -> Iterator[StandInBoard]:
    python = python36 if request.param == "nano" and python36 is not None else "/usr/bin/python3"
    with served(place, request.param, python=python) as made:
        introduce(made, request.param)
        yield made


@pytest.fixture()
def orin(place: Path) -> Iterator[StandInBoard]:
    with served(place, "orin") as made:
        introduce(made, "orin")
        yield made
