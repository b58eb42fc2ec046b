"""The tutorial of Jetson boards, line by line, on the stand-in."""

from __future__ import annotations

import re
import shlex
import shutil

import pytest

from tests.conftest import run_cli
from tests.docs.test_pages import ROOT, blocks
from tests.support.boards import needs_sshd, served
from trtq.testing.images import write_classes

pytestmark = [needs_sshd, pytest.mark.slow]
WRITTEN = "jetson@192.168.55.1"


def test_the_tutorial_of_boards_does_what_it_says(place, cnn_out, tmp_path):
    shutil.copytree(cnn_out, tmp_path / "out")
    write_classes(tmp_path / "images", 2, 8)
    lines = [
        line.removeprefix("$ ")
        for _, body in blocks("tutorial-jetson.md", "console")
        for line in body.splitlines()
    ]
    assert len(lines) == 7 and WRITTEN in lines[0]
    with served(place, "orin") as board:
        own = f"{board.address} --identity {board.identity}"
        add = shlex.split(lines[0].replace(WRITTEN, own))[1:]
        key = run_cli(*add, cwd=tmp_path).stderr.split("--accept-key ")[1].split(". [")[0]
        for words in ([*add, "--accept-key", key], *(shlex.split(li)[1:] for li in lines[1:])):
            done = run_cli(*words, cwd=tmp_path)
            assert done.returncode == 0, f"{words}\n{done.stderr}"
    (record,) = re.findall(r"`(runs/deploy/[^`]+)`", (ROOT / "docs/tutorial-jetson.md").read_text())
    assert (tmp_path / record).is_file()
    assert list((tmp_path / "runs/deploy/orin").rglob("*.engine"))
