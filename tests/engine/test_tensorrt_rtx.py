"""TensorRT for RTX, and builds in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from functools import partial

import msgspec
import onnx
import pytest

from tests.conftest import run_cli
from tests.support.builds import asked, with_note
from trtq import BuildSpec, build
from trtq.artifact import locked
from trtq.engine import worker_process
from trtq.engine.manifest import read_manifest
from trtq.engine.worker_process import is_installed, start_early
from trtq.errors import EngineError, MissingExtraError, UsageError
from trtq.testing.trtexec import write_fake_trtexec


def test_what_tensorrt_for_rtx_does_not_have(files, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    for option, value in (
        ("hardware_compatible", "ampere+"),
        ("version_compatible", True),
        ("strip_weights", True),
        ("dla", 0),
    ):
        name = option.replace("_", "-")
        with pytest.raises(
            EngineError,
            match=f"Cannot build with --{name} for .* has no .*Leave --{name} out",
        ):
            build(asked(files, tmp_path, backend="tensorrt-rtx", **{option: value}))
    with pytest.raises(UsageError, match="Cannot use a timing cache with TensorRT for RTX"):
        build(asked(files, tmp_path, backend="tensorrt-rtx", timing_cache=f"{tmp_path}/c"))


# ---- the command -------------------------------------------------------------------------------


def test_two_builds_of_one_engine_at_once(files, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    line = [
        sys.executable,
        "-m",
        "trtq",
        "build",
        f"{files}/model.qdq.onnx",
        "--target",
        "rtx3080",
        "--out",
        f"{tmp_path}/e.engine",
    ]
    both = [
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outs = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0], outs
    read_manifest(tmp_path / "e.engine")
    with locked(tmp_path / ".e.engine.lock"):
        late = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert (
            "Another trtq is at work here (.e.engine.lock); waiting for it to end"
            in late.stderr.readline()
        )
    assert late.communicate(timeout=120) and late.returncode == 0


def test_the_python_of_a_dry_run_names_the_module(files, tmp_path):
    done = run_cli(
        "build",
        f"{files}/model.qdq.onnx",
        "--target",
        "h200@11.4",
        "--backend",
        "tensorrt",
        "--dry-run",
        "--out",
        f"{tmp_path}/e",
    )
    assert done.stdout.startswith('import os\nos.environ["TRTQ_TENSORRT"] = "tensorrt"\n')
    asked_for = json.loads(json.loads(done.stdout.partition("build_json(")[2].rpartition(")")[0]))
    assert asked_for["typed"] is True
    assert asked_for["sm"] is None


def test_all_errors_of_the_parser_with_their_nodes(files, tmp_path, monkeypatch):
    """The real parser refuses an unknown op, and the error names the op's module.

    Lint names the same nodes before the builder starts.
    """
    pytest.importorskip("tensorrt_rtx")
    model = onnx.load(files / "model.fp32.onnx")
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "MyRelu", "com.me"
    model.opset_import.append(onnx.helper.make_opsetid("com.me", 1))
    onnx.save(model, tmp_path / "m.onnx")
    said = (
        r"L02, relu/Relu: no TensorRT reads MyRelu of the domain com.me; L02, relu_1/Relu: .*; "
        r"L02, relu_2/Relu: .*"
    )
    with pytest.raises(EngineError, match=said):
        build(asked(files, tmp_path, onnx=f"{tmp_path}/m.onnx", backend="auto"))
    monkeypatch.setattr("trtq.engine.build.refuse_errors", lambda *_: None)
    with pytest.raises(
        EngineError,
        match=r"the ONNX parser refuses relu/Relu \(MyRelu\): .*; relu_1/Relu \(MyRelu\): .*; "
        r"relu_2/Relu",
    ):
        build(asked(files, tmp_path, onnx=f"{tmp_path}/m.onnx", backend="auto"))


# ---- the file that is built from ---------------------------------------------------------------


def test_a_file_is_built_from_where_it_lies_and_must_not_change(files, tmp_path, monkeypatch):
    """A file that needs no change is not copied.

    A file that changes during the build gives no engine, and the old engine stays.
    """
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v8502", sm="8.7")))
    with_note(files, tmp_path, "seconds:1.5")
    given = partial(
        asked, tmp_path, tmp_path, backend="trtexec", target="orin@8.5", precision="fp32"
    )
    made = build(given())
    assert f"--onnx={tmp_path}/model.qdq.onnx" in made.builder.command
    before = (tmp_path / "e.engine").read_bytes()
    path = tmp_path / "model.qdq.onnx"
    timer = threading.Timer(0.8, lambda: path.write_bytes(path.read_bytes() + b""))
    timer.start()
    with pytest.raises(
        EngineError,
        match="model.qdq.onnx changed while the engine was built from it: what was checked may "
        "not be what",
    ):
        build(given())
    timer.join()
    assert (tmp_path / "e.engine").read_bytes() == before
    timer = threading.Timer(0.8, path.unlink)
    timer.start()
    with pytest.raises(EngineError, match="changed while the engine was built"):
        build(given())
    timer.join()


def test_what_rtx_is_not(files, tmp_path):
    """A release of TensorRT in the target is no wish that TensorRT for RTX can meet."""
    with pytest.raises(
        EngineError,
        match=r"Cannot build for rtx4090@8.6 with TensorRT-RTX: its engines load .*, not in "
        r"TensorRT 8.6",
    ):
        build(
            BuildSpec(
                onnx=f"{files}/model.qdq.onnx",
                target="rtx4090@8.6",
                backend="tensorrt-rtx",
                out=str(tmp_path / "e.engine"),
            )
        )
    with pytest.raises(
        MissingExtraError,
        match=r"Building for rtx4090@10.3 .* needs full TensorRT.*TensorRT-RTX has releases of "
        r"its own",
    ):
        build(
            BuildSpec(
                onnx=f"{files}/model.qdq.onnx",
                target="rtx4090@10.3",
                out=str(tmp_path / "e.engine"),
            )
        )


def test_a_cache_of_another_model(files, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v8502", sm="7.2")))
    (tmp_path / "c.cache").write_text(
        "TRT-8502-EntropyCalibration2\nfoo: 3c010a14\nbar: 3c010a14\n"
    )
    with pytest.raises(
        EngineError,
        match=r"the cache names no tensor of the model \(it has foo, bar\). Give the ONNX file "
        r"that the cache",
    ):
        build(
            BuildSpec(
                onnx=f"{files}/model.fp32.onnx",
                target="xavier@8.5",
                backend="trtexec",
                calibration=str(tmp_path / "c.cache"),
                out=str(tmp_path / "e.engine"),
            )
        )


@pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="TensorRT for RTX is not installed")
def test_the_worker_loads_while_the_file_is_read_and_ends_without_a_request(cnn_out, tmp_path):
    asked = BuildSpec(
        onnx=f"{cnn_out}/model.qdq.onnx", target="rtx3080", out=f"{tmp_path}/e.engine"
    )
    start_early(asked)
    (early,) = worker_process._early
    assert build(asked).builder.backend == "tensorrt-rtx"
    assert (early.process.returncode, worker_process._early) == (0, [])
    start_early(msgspec.structs.replace(asked, target="xavier@8.5"))  # another builder's
    assert worker_process._early == []
    start_early(asked)
    worker = worker_process.start("tensorrt_rtx")
    with worker.errors:
        out, _ = worker.process.communicate("")
    assert (out, worker.process.returncode) == ("", 0)
