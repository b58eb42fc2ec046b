"""Builds for the targets of TensorRT for RTX and their refusals."""

from __future__ import annotations

import os
import shutil

import msgspec
import numpy as np
import onnx
import pytest

from tests.support.recipes import pytest_rtx
from trtq import BenchSpec, BuildSpec, bench, build, inspect
from trtq.engine.manifest import read_manifest
from trtq.errors import EngineError, ExportError, MissingExtraError, UsageError
from trtq.export.codes import quantized_nodes
from trtq.export.fp16 import convert_to_half
from trtq.export.ort import open_session, run_batch
from trtq.platform.catalogue import catalogue
from trtq.platform.target import Target

# ---- build -------------------------------------------------------------------------------------


@pytest_rtx
@pytest.mark.parametrize("target", ["rtx3080", "rtx4090", "sm120"])
def test_build_int8(cnn_out, tmp_path, target):
    engine = tmp_path / "m.engine"
    manifest = build(
        BuildSpec(onnx=f"{cnn_out}/model.qdq.onnx", target=target, out=str(engine), batch=(1, 2, 4))
    )
    assert engine.stat().st_size == manifest.engine_bytes
    assert manifest.audit.convolutions == {"int8": 4}
    assert manifest.quantized_convolutions == 4
    assert manifest.batch == (1, 2, 4)
    assert manifest.tensors[0].name == "input"
    assert msgspec.to_builtins(read_manifest(engine)) == msgspec.json.decode(
        msgspec.json.encode(manifest)
    ) | {"batch": (1, 2, 4)}
    assert "quantized layers in INT8" in inspect(engine)["summary"]


@pytest_rtx
def test_build_half_for_turing_and_mixed_with_int8(cnn_out, tmp_path):
    turing = build(
        BuildSpec(
            onnx=f"{cnn_out}/model.fp32.onnx",
            target="t4",
            precision="fp16",
            out=f"{tmp_path}/t4.engine",
        )
    )
    assert turing.audit.convolutions == {"half": 4}
    mixed = build(
        BuildSpec(
            onnx=f"{cnn_out}/model.qdq.onnx",
            target="sm86",
            precision="fp16",
            out=f"{tmp_path}/m.engine",
        )
    )
    assert mixed.audit.convolutions == {"int8": 4}


@pytest_rtx
def test_nothing_silent_on_turing(cnn_out, tmp_path):
    out = f"{tmp_path}/e.engine"
    with pytest.raises(
        EngineError,
        match=r"Refusing to build a Q/DQ model for Tesla T4.*computed in float without a message",
    ):
        build(BuildSpec(onnx=f"{cnn_out}/model.qdq.onnx", target="t4", precision="fp16", out=out))
    with pytest.raises(
        EngineError,
        match=r"no FP32 matrix product for compute capability 7.5.*head/MatMul.*--precision fp16",
    ):
        build(BuildSpec(onnx=f"{cnn_out}/model.fp32.onnx", target="sm75", out=out))
    assert not os.listdir(tmp_path)


def test_full_tensorrt_builds_for_its_own_gpu_only(cnn_out, tmp_path, monkeypatch):
    import torch

    from trtq.engine import select_builder as choose

    monkeypatch.setattr(choose, "is_installed", lambda module: True)
    asked = BuildSpec(
        onnx=f"{cnn_out}/model.qdq.onnx",
        target="h200",
        backend="tensorrt",
        out=f"{tmp_path}/e.engine",
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        EngineError, match="the engine must be built on the target GPU; no CUDA device was found"
    ):
        build(asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    with pytest.raises(
        EngineError,
        match=r"GPU is not H200: .*compute capability 8.6; the target has 9.0. .*--target sm86",
    ):
        build(asked)


def test_targets_that_cannot_be(cnn_out, tmp_path):
    qdq, out = f"{cnn_out}/model.qdq.onnx", f"{tmp_path}/e.engine"
    with pytest.raises(
        EngineError, match=r"Jetson Nano: compute capability 5.3 has no INT8 arithmetic"
    ):
        build(BuildSpec(onnx=qdq, target="nano", out=out))
    with pytest.raises(
        EngineError,
        match=r"TensorRT-RTX does not build for Jetson AGX Orin \(sm87\): it covers sm75",
    ):
        build(BuildSpec(onnx=qdq, target="orin", backend="tensorrt-rtx", out=out))
    with pytest.raises(MissingExtraError, match="needs full TensorRT, which is not installed here"):
        build(BuildSpec(onnx=qdq, target="h200", out=out))
    with pytest.raises(UsageError, match="Unknown target 'sm99'"):
        build(BuildSpec(onnx=qdq, target="sm99", out=out))
    with pytest.raises(UsageError, match="expected 1 <= MIN <= OPT <= MAX"):
        build(BuildSpec(onnx=qdq, target="sm86", out=out, batch=(4, 2, 1)))
    assert {Target.parse(n).sm for n in catalogue().targets} >= {53, 75, 86, 120}


@pytest_rtx
def test_parser_errors_reach_the_user_with_the_node(cnn_out, tmp_path):
    model = onnx.load(cnn_out / "model.fp32.onnx")
    node = next(n for n in model.graph.node if n.op_type == "Relu")
    node.op_type, node.domain = "Mystery", "nowhere"
    model.opset_import.add(domain="nowhere", version=1)
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(
        EngineError, match=rf"L02, {node.name}: no TensorRT reads Mystery of the domain nowhere"
    ):
        build(BuildSpec(onnx=f"{tmp_path}/m.onnx", target="sm86", out=f"{tmp_path}/e.engine"))
    assert not (tmp_path / "e.engine").exists()


@pytest_rtx
def test_an_engine_with_another_manifest(cnn_out, tmp_path):
    for name, source in (("a", "qdq"), ("b", "fp32")):
        build(
            BuildSpec(
                onnx=f"{cnn_out}/model.{source}.onnx",
                target="sm86",
                out=f"{tmp_path}/{name}.engine",
            )
        )
    shutil.copy(tmp_path / "b.engine.json", tmp_path / "a.engine.json")
    with pytest.raises(EngineError, match="The manifest a.engine.json belongs to another engine"):
        inspect(tmp_path / "a.engine")
    (tmp_path / "a.engine.json").unlink()
    with pytest.raises(EngineError, match="has no manifest"):
        inspect(tmp_path / "a.engine")
    with pytest.raises(
        UsageError, match=r"Cannot run the engine b.engine here: it needs its NVIDIA GPU"
    ):
        bench(BenchSpec(file=(f"{tmp_path}/b.engine",)))


def test_half_keeps_what_the_model_says(cnn_out):

    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)
    for name, floor in (("fp32", 50.0), ("qdq", 30.0)):
        model = onnx.load(cnn_out / f"model.{name}.onnx")
        half = convert_to_half(model)
        onnx.checker.check_model(half, full_check=True)
        full, other = (run_batch(open_session(m), x)[0] for m in (model, half))
        assert 10 * np.log10((full**2).sum() / ((full - other) ** 2).sum()) > floor
    assert (
        len(quantized_nodes(half, "Conv")) == 4
    )  # through the cast between the pair and its convolution
    big = onnx.load(cnn_out / "model.fp32.onnx")
    tensor = next(i for i in big.graph.initializer if i.name == "conv1.weight")
    tensor.CopyFrom(
        onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(tensor) * np.float32(1e8), tensor.name
        )
    )
    with pytest.raises(ExportError, match="conv1.weight does not fit FP16"):
        convert_to_half(big)
