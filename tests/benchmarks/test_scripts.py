"""Every script of the benchmarks runs in its smoke form, a new one too."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SHARED = {"subprocess_runner", "models", "redo", "smoke"}  # imported by the others
SHARED |= {p.stem for p in FOLDER.glob("front_*.py")} - {"front_door"}
SCRIPTS = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in SHARED)
FAILURE = re.compile(r"failed: (?!not asked for)|died: |\bError\b|\w+Error:|does not fit")


def test_every_script_takes_the_option():
    assert SCRIPTS
    for name in SCRIPTS:
        text = (FOLDER / f"{name}.py").read_text()
        assert re.search(r"^from smoke import .*arguments", text, re.M), name
        assert "parser.parse_args()" not in text, name


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_smoke_form(name, tmp_path):
    if name in ("build_overhead", "kernels", "targets", "timm_sweep"):
        pytest.importorskip("tensorrt_rtx")
    if name == "upload" and not Path("/usr/sbin/sshd").exists():
        pytest.skip("no OpenSSH server")
    before = {
        p: p.stat().st_mtime_ns
        for p in FOLDER.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    env = {k: v for k, v in os.environ.items() if k != "TRTQ_DATA"} | {
        "TMPDIR": str(tmp_path),
        "TRTQ_HISTORY": str(tmp_path / "h.sqlite"),
    }
    done = subprocess.run(
        [sys.executable, str(FOLDER / f"{name}.py"), "--smoke"],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not FAILURE.search(done.stdout), done.stdout
    assert done.stdout.strip()
    after = {
        p: p.stat().st_mtime_ns
        for p in FOLDER.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }
    assert after == before
