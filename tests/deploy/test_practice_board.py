"""A stand-in to practise with, as a person starts it."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import read, run_cli
from tests.support.boards import needs_sshd, pooling

WORDS = [sys.executable, "-m", "trtq.testing.practice_board"]


@needs_sshd
@pytest.mark.slow
def test_a_model_is_deployed_to_it_and_the_record_says_that_it_is_a_stand_in(tmp_path):
    with subprocess.Popen([*WORDS, "orin"], stdout=subprocess.PIPE, text=True) as board:
        assert board.stdout is not None
        lines = [board.stdout.readline() for _ in range(3)]
        add = shlex.split(lines[1])
        key = re.search(r"SHA256:\S+", lines[2])
        assert key is not None
        folder = Path(add[add.index("--identity") + 1]).parents[1]
        added = run_cli(*add[1:], "--accept-key", key[0])
        assert added.returncode == 0, added.stderr
        assert "(stand-in: its figures are invented)" in added.stdout
        model = str(pooling(tmp_path / "m.onnx"))
        quick = ("--duration", "0.3", "--min-samples", "50")
        done = run_cli("deploy", "my-orin", model, *quick, "--out", str(tmp_path / "out"))
        assert done.returncode in (0, 3), done.stderr
        board.send_signal(signal.SIGINT)
        rest, _ = board.communicate(timeout=60)
    assert rest == "The stand-in is off\n"
    assert not folder.exists()
    assert "(stand-in: its figures are invented)" in str(read(tmp_path / "out/deploy.json"))


def test_an_unknown_board_is_refused():
    done = subprocess.run([*WORDS, "nanno"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "invalid choice: 'nanno'" in done.stderr
