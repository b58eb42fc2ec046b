"""The Tab key in bash, with the script that ``trtq completion`` prints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import run_cli
from trtq.cli.completing import NAMES, offer
from trtq.verbs import VERBS

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
PRESS = """
set -e
source "$1/script"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
compopt() { echo compopt "$@"; }
_trtq_completion "$1"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with the program and the script, as after an installation."""
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "trtq"
    code = "import sys; sys.argv[0] = 'trtq'; from trtq.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    program.chmod(0o755)
    (folder / "script").write_text(run_cli("completion", "bash").stdout)
    return folder


def press_tab(folder: Path, *words: str) -> list[str]:
    path = f"{folder}:{Path(sys.executable).parent}:/usr/bin:/bin"
    line = ["bash", "-c", PRESS, "bash", str(folder), *words]
    root = str(Path(__file__).parents[2])
    env = {"PATH": path, "PYTHONPATH": root, "XDG_CONFIG_HOME": str(folder), "HOME": str(folder)}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    return [text for text in done.stdout.splitlines() if text]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["trtq", "qu"], ["quantize"]),
        (["trtq", "build", "--prec"], ["--precision"]),
        (["trtq", "build", "x.onnx", "--precision", ""], ["fp32", "fp16"]),
        (["trtq", "build", "x.onnx", "--target", "rtx308"], ["rtx3080"]),
        (["trtq", "targets", "xav"], ["xavier", "xavier-nx"]),
        (["trtq", "explain", "SYSTEM-00"], [f"SYSTEM-{i:03d}" for i in range(10)]),
        (["trtq", "device", "prob"], ["probe"]),
        (["trtq", "build", "mod"], ["compopt -o default"]),
        (["trtq", "inspect", "out"], ["compopt -o default"]),
        (["trtq", "quantize", "x.onnx", "--data", "ima"], ["compopt -o default"]),
    ],
)
def test_the_tab_key_completes(words, offered, folder):
    assert press_tab(folder, *words) == offered


def test_every_verb_is_offered_and_none_is_imported_for_it(folder):
    assert press_tab(folder, "trtq", "") == list(VERBS)


def test_names_of_boards_are_offered(folder, monkeypatch):
    monkeypatch.setitem(NAMES, "board", lambda: {"nano": None, "orin": None})
    assert [item.value for item in offer("board")(None, None, "n")] == ["nano"]
    assert [item.type for item in offer("model")(None, None, "n")] == ["file"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell):
    assert "_TRTQ_COMPLETE" in run_cli("completion", shell).stdout


def test_another_shell_is_refused_with_those_that_are_known():
    done = run_cli("completion", "tcsh")
    assert done.returncode == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in done.stderr
