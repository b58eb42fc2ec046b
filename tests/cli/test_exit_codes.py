"""Exit codes that scripts rely on."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from trtq import pipeline, stages
from trtq.cli import run_command
from trtq.demos.demo import Demo
from trtq.recipe import load_recipe

RECIPE = """
out = "{out}"
[quantize]
model = "trtq.testing.models:tiny_cnn"
data = "{images}"
input_size = "3x32x32"
"""


class Figures(msgspec.Struct):
    """A record that says of itself whether it is valid."""

    summary: str = "1.00 ms"
    valid: bool = True
    finite: bool = True


def plan_of(work, folder: Path):
    def plan(_recipe, _out, _progress):
        return [stages.Stage("bench qdq", lambda: {"a": 1}, (), lambda: stages._outcome(work()))]

    return plan


@pytest.mark.parametrize(
    ("record", "code"), [(Figures(), 0), (Figures(valid=False), 3), (Figures(finite=False), 3)]
)
def test_a_run_with_a_stage_that_is_not_valid_ends_with_3_also_when_it_is_skipped(
    record, code, images, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(out=tmp_path / "out", images=images))
    monkeypatch.setattr(pipeline, "plan", plan_of(lambda: record, tmp_path))
    monkeypatch.setattr("trtq.report.tables.print_tables", lambda folder: None)
    assert run_command(["run", str(path)]) == code
    first = capsys.readouterr().out
    assert run_command(["run", str(path)]) == code
    second = capsys.readouterr().out
    assert "bench qdq: ran" in first
    assert "bench qdq: skipped" in second
    assert (
        ("NOT VALID" in first)
        == ("NOT VALID: remove its files to run it again" in second)
        == (code == 3)
    )
    results = pipeline.run(load_recipe(path))
    assert [r.valid for r in results] == [code == 0]


@pytest.fixture()
def record(tmp_path) -> Path:
    path = tmp_path / "good.json"
    path.write_text(json.dumps({"schema": 1, "verb": "bench"}))
    return path


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "there is no such file"),
        (b"{", "it is not whole JSON"),
        (b"[]", "it holds no JSON object"),
        (b'{"verb": "quantize"}', "is no record of trtq bench"),
        (b'{"verb": "bench"}', "missing required field"),
        (
            b'{"verb": "bench", "schema": 9}',
            "a newer trtq wrote it: its schema is 9, this trtq reads up to 1",
        ),
        (b'{"verb": "bench", "schema": "1"}', "its schema is '1'"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_a_gate_that_cannot_compare_does_not_end_with_1(content, text, tmp_path, capsys):
    base = tmp_path / "base.json"
    if content is not None:
        base.write_bytes(content)
    assert run_command(["gate", str(base), "--baseline", str(base)]) == 3
    assert text in capsys.readouterr().err


def test_a_gate_that_is_asked_wrongly_ends_with_2_and_a_crash_of_it_with_3(
    tmp_path, capsys, monkeypatch
):
    assert run_command(["gate"]) == 2
    assert run_command(["gate", "a", "--baseline", "b", "--max-slowdown", "much"]) == 2
    monkeypatch.setattr("trtq.bench.gate.gate", lambda spec: 1 / 0)
    assert run_command(["gate", "a", "--baseline", "b"]) == 3
    assert "This is a bug in trtq" in capsys.readouterr().err


def test_a_busy_machine_is_no_failure_of_the_demo(tmp_path, monkeypatch, capsys):
    import trtq.cli.run_cmd

    demo = Demo(
        model="A model", find=lambda: tmp_path, draw=lambda f: "2 images", folder="x", recipe=""
    )
    for code, ends in ((3, 0), (1, 1), (0, 0)):
        monkeypatch.setattr(trtq.cli.run_cmd, "run_recipe", lambda recipe, code=code: code)
        assert demo.run(tmp_path) == ends
        printed = capsys.readouterr().out
        assert f"A model; 2 images in {tmp_path}/x" in printed
        assert ("Some figures are not valid" in printed) == (code == 3)
