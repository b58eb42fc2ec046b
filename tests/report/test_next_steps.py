"""What a page advises next, and its commands."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from trtq.cli import cli
from trtq.report.contents import read_run
from trtq.report.next_steps import next_steps


@pytest.fixture()
def folder(cnn_out, tmp_path):
    (tmp_path / "my out").mkdir()
    shutil.copy(cnn_out / "quantize.json", tmp_path / "my out")
    return tmp_path / "my out"


def verbs(steps) -> list[str]:
    """Return the verbs, after every command was taken by the program's own parser."""
    found = []
    for step in steps:
        words = shlex.split(step.command)
        command = cli.get_command(None, words[1])
        command.make_context(words[1], words[2:])
        found.append(words[1])
    return found


def test_first_accuracy_and_an_engine(folder):
    steps = next_steps(read_run(folder), folder)
    assert verbs(steps) == ["evaluate", "build"]
    assert f"--exclude '{folder}/quantize.json'" in steps[0].command


def test_then_latency_on_the_device_and_a_program(folder):
    for name in ("fp32.engine", "int8.engine"):
        (folder / name).write_bytes(b"")
    engines = {
        "fp32.engine": SimpleNamespace(has_codes=False),
        "int8.engine": SimpleNamespace(has_codes=True),
    }
    built = replace(read_run(folder), evaluate=SimpleNamespace(), engines=engines)
    bench, package = next_steps(built, folder)
    assert verbs([bench, package]) == ["bench", "package"]
    assert "fp32.engine" in bench.command and "int8.engine" in bench.command
    assert "int8.engine" in package.command and "fp32.engine" not in package.command
    row = SimpleNamespace(device="cuda:0 (TensorRT)")
    measured = replace(built, bench={"qdq": SimpleNamespace(rows=[row])})
    assert verbs(next_steps(measured, folder)) == ["package"]


def test_what_was_trained_is_what_goes_on(folder):
    trained = replace(read_run(folder), training=SimpleNamespace())
    first, second = next_steps(trained, folder)
    assert "finetune/model.qdq.onnx' --reference" in first.command
    assert "build" in second.command and "finetune/model.qdq.onnx" in second.command
