"""What trtq writes replaces only what trtq made, and what it starts ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.conftest import spec
from trtq import BuildSpec, build, quantize
from trtq.artifact import leftovers
from trtq.cli import run_command
from trtq.engine.manifest import read_engine, read_manifest
from trtq.errors import ArtifactError, EngineError, UsageError
from trtq.recipe import Recipe, load_recipe
from trtq.specs import AllocateSpec, BenchSpec, QuantizeSpec, SearchSpec, Spec
from trtq.specs.base import is_path

# ---- ~ -----------------------------------------------------------------------------------------


def specs_of(kind: type[Spec]) -> list[type[Spec]]:
    return [s for sub in kind.__subclasses__() for s in (sub, *specs_of(sub))]


def test_every_field_that_names_a_file_is_one():
    from typing import get_type_hints

    names = {
        "out",
        "onnx",
        "data",
        "checkpoint",
        "class_index",
        "masks",
        "encodings",
        "reference",
        "exclude",
        "calibration",
        "cache",
        "timing_cache",
        "calib_cache",
        "analysis",
        "allocation",
        "sensitivity",
        "record",
        "baseline",
        "accuracy",
        "fix",
        "val",
        "val_masks",
        "val_class_index",
        "network",
        "ranges",
        "result",
        "engine",
        "baseline_accuracy",
        "train",
    }
    for one in specs_of(Spec):
        hints = get_type_hints(one, include_extras=True)
        assert [n for n in names & hints.keys() if not is_path(hints[n])] == [], one
        assert not is_path(hints.get("title", str))


def test_a_home_is_written_out_in_options_recipes_and_candidates(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    made = QuantizeSpec(model="~/m.py:net", data="cifar10:~/c", out="~", checkpoint="~/x~y.pt")
    home = str(tmp_path)
    assert (made.model, made.data, made.out, made.checkpoint) == (
        f"{home}/m.py:net",
        f"cifar10:{home}/c",
        home,
        f"{home}/x~y.pt",
    )
    assert BenchSpec(file=("~/a.onnx", "b~.onnx")).file == (f"{home}/a.onnx", "b~.onnx")
    assert SearchSpec.make(
        {"candidates": ["~/m.py:f=~/w.pt"], "out": "o", "data": "d"}
    ).candidates == (f"{home}/m.py:f=~/w.pt",)
    (tmp_path / "r.toml").write_text(
        'out = "~/runs/c"\n[quantize]\nmodel = "m"\ndata = "~/d"\n[finetune]\nepochs = 1\n'
    )
    recipe = load_recipe(tmp_path / "r.toml")
    assert isinstance(recipe, Recipe)
    assert (recipe.out, recipe.quantize.out, recipe.quantize.data) == (
        f"{home}/runs/c",
        f"{home}/runs/c",
        f"{home}/d",
    )
    assert recipe.finetune is not None
    assert recipe.finetune.encodings == f"{home}/runs/c/encodings.safetensors"
    assert msgspec.to_builtins(recipe)["out"] == f"{home}/runs/c"  # what a record says
    with pytest.raises(
        UsageError, match=r"Cannot use --out ~nobody-here/x: this machine has no user nobody-here"
    ):
        AllocateSpec(analysis="a", out="~nobody-here/x")


def test_a_home_is_written_out_in_arguments_without_a_spec(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.toml").write_text('out = "~/o"\n[quantize]\nmodel = "m"\ndata = "d"\n')
    assert run_command(["inspect", "~/r.toml"]) == 0
    assert f"out: {tmp_path}/o" in capsys.readouterr().out
    assert run_command(["run", "~/none.toml"]) == 2
    assert f"Cannot read the recipe {tmp_path}/none.toml" in capsys.readouterr().err
    monkeypatch.setenv("TRTQ_HISTORY", "~/h.sqlite")
    assert run_command(["history", "--plot", "~/p.png"]) == 0
    assert (tmp_path / "h.sqlite").is_file()
    assert (tmp_path / "p.png").is_file()
    assert not (tmp_path / "~").exists()


# ---- files of others ---------------------------------------------------------------------------


def test_quantize_deletes_what_a_killed_run_of_it_left_and_nothing_else(images, tmp_path):
    out = tmp_path / "out"
    (out / ".trtq-new/sub").mkdir(parents=True)
    mine = [out / ".quantize.json.abcd1234.tmp", out / ".trtq-new/.model.qdq.onnx.abcd1234.tmp"]
    others = [
        out / ".notes.tmp",
        out / ".quantize.json.old.tmp",
        out / ".trtq-new/thesis.txt",
        out / ".a.b.12345678.tmp",
    ]
    for path in (*mine, *others):
        path.write_text("x")
    (out / ".quantize.json.folder12.tmp").mkdir()
    quantize(spec(images, out))
    assert not any(p.exists() for p in mine)
    assert all(p.read_text() == "x" for p in others)
    assert (out / "quantize.json").is_file()
    assert leftovers(out, ["*"]) == []  # a name is no pattern


@pytest.mark.parametrize("made", ["folder", "input", "pipe", "record"])
def test_a_build_is_refused_before_work_where_its_output_cannot_be(
    made, cnn_out, tmp_path, monkeypatch
):
    monkeypatch.setattr("trtq.engine.build.prepare", lambda spec: pytest.fail("work had begun"))
    model = tmp_path / "m.onnx"
    model.write_bytes((cnn_out / "model.qdq.onnx").read_bytes())
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link.engine").symlink_to(model)
    (tmp_path / "quantize.json").write_bytes((cnn_out / "quantize.json").read_bytes())
    out, why = {
        "folder": (
            "folder",
            r"Cannot write .*folder: it is a folder. Name a file in it: --out .*folder/NAME",
        ),
        "input": ("link.engine", "it is the input"),
        "pipe": ("pipe", "it is a device or a pipe"),
        "record": (
            "quantize",
            r"the manifest would replace .*quantize.json, which is no manifest of an engine",
        ),
    }[made]
    with pytest.raises(ArtifactError, match=why):
        build(BuildSpec(onnx=str(model), target="rtx4090", out=str(tmp_path / out)))
    assert model.read_bytes() == (cnn_out / "model.qdq.onnx").read_bytes()


@pytest.mark.parametrize(
    "words",
    [
        ("allocate", "a.json", "--strategy", "pareto"),
        ("lint", "m.onnx", "--target", "rtx4090", "--fix"),
        ("export-calib", "m.onnx", "--target", "xavier@8.5"),
        ("analyze", "trtq.testing.models:tiny_cnn", "--data", "none"),
    ],
)
def test_other_verbs_too_refuse_a_folder_where_a_file_is_asked_for(
    words, cnn_out, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes((cnn_out / "model.qdq.onnx").read_bytes())
    (tmp_path / "here").mkdir()
    last = [] if words[-1] == "--fix" else ["--out"]
    assert run_command([*words, *last, "here"]) == 1
    assert "it is a folder. Name a file in it" in capsys.readouterr().err


# ---- what is checked is what is used -----------------------------------------------------------


def test_the_engine_that_was_hashed_is_the_one_that_is_used(tmp_path, cnn_out, monkeypatch):
    from tests.support.builds import asked
    from trtq.testing.tensorrt import write_fake_tensorrt

    folder = write_fake_tensorrt(tmp_path / "fake", "10.3.0")
    monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setattr("trtq.engine.select_builder.is_installed", lambda module: True)
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 6))
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("tensorrt", None)
    try:
        build(asked(cnn_out, tmp_path))
    finally:
        sys.modules.pop("tensorrt", None)
    engine = tmp_path / "e.engine"
    good = engine.read_bytes()
    manifest, plan = read_engine(engine)
    assert plan == good
    engine.write_bytes(b"another")
    assert (
        read_manifest(engine, good) == manifest
    )  # of the bytes that were read, not of the file as it is by now
    with pytest.raises(EngineError, match="belongs to another engine"):
        read_engine(engine)
    engine.unlink()
    with pytest.raises(EngineError, match="there is no such file"):
        read_engine(engine)


# ---- SIGTERM -----------------------------------------------------------------------------------

SLEEPER = (
    "import os, time\nopen(os.environ['PID_FILE'], 'w').write(str(os.getpid()))\ntime.sleep(300)\n"
)
TRTEXEC = """#!/bin/sh
case "$*" in *--help*) \
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # trtexec --help"; exit 0;; esac
echo $$ > "$PID_FILE"; exec sleep 300
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("backend", ["tensorrt-rtx", "trtexec"])
def test_a_build_that_is_told_to_stop_leaves_no_builder_and_no_plan(
    backend, number, cnn_out, tmp_path
):
    fake, temporary, out = tmp_path / "fake", tmp_path / "tmp", tmp_path / "out"
    for folder in (fake / "tensorrt_rtx", temporary, out):
        folder.mkdir(parents=True)
    (fake / "tensorrt_rtx/__init__.py").write_text(SLEEPER)
    (fake / "trtexec").write_text(TRTEXEC)
    (fake / "trtexec").chmod(0o755)
    env = {
        **os.environ,
        "PYTHONPATH": f"{fake}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        "TMPDIR": str(temporary),
        "PID_FILE": str(tmp_path / "pid"),
        "TRTQ_TRTEXEC": str(fake / "trtexec"),
    }
    words = [
        "build",
        str(cnn_out / "model.qdq.onnx"),
        "--target",
        "rtx4090",
        "--backend",
        backend,
        "--out",
        str(out / "e.engine"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "trtq", *words],
        env=env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    ready = tmp_path / "pid"
    while not (
        ready.is_file() and ready.read_text().strip() and list(temporary.glob("trtq-build-*"))
    ):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the build did not start"
        time.sleep(0.05)
    builder = int(ready.read_text())
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    end = time.monotonic() + 10
    while alive(builder) and time.monotonic() < end:
        time.sleep(0.05)  # it was killed; a busy machine takes a while to bury it
    assert not alive(builder)
    assert list(temporary.iterdir()) == []
    assert [p.name for p in out.iterdir()] == [".e.engine.lock"]
