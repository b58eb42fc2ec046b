"""The wheel: small, only the package, and complete."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MOST = 1_600_000  # bytes; 1,482,350 in November 2026

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(ROOT)]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)
    if "hatchling" in done.stderr and done.returncode:
        pytest.skip(f"pip reaches no index: {done.stderr.strip()[-200:]}")
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("trtq-*.whl")
    return path


def test_the_wheel_is_small_and_holds_the_package_alone(wheel):
    assert wheel.stat().st_size < MOST
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names if ".dist-info/" not in n} == {"trtq"}
    assert not [n for n in names if "tests" in n or "benchmarks" in n or "__pycache__" in n]
    assert not [n for n in names if n.endswith((".onnx", ".engine", ".safetensors", ".png"))]


def test_the_wheel_holds_every_file_of_the_package(wheel):
    known = subprocess.run(
        ["git", "ls-files", "trtq"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    missing = set(known.stdout.split()) - set(zipfile.ZipFile(wheel).namelist())
    assert missing == set()
