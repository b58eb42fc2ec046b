"""Inspection of every artefact."""

from __future__ import annotations

import shutil
import subprocess
import sys

import onnx
import pytest
from onnx import TensorProto, helper

from tests.conftest import run_cli
from tests.support.recipes import write_recipe
from trtq import inspect
from trtq.errors import ArtifactError, EncodingsError

# ---- inspect -----------------------------------------------------------------------------------


def test_inspect_every_artefact(cnn_out, images, tmp_path):
    assert inspect(cnn_out / "model.qdq.onnx")["quantized_layers"] == "5 of 5"
    assert inspect(cnn_out / "model.fp32.onnx")["kind"] == "ONNX"
    assert inspect(cnn_out / "encodings.safetensors")["quantizers"] >= 11
    assert inspect(cnn_out / "quantize.json")["kind"] == "quantize record"
    assert (
        inspect(next((cnn_out / "cache").glob("*.safetensors")))["kind"]
        == "calibration cache entry"
    )
    assert inspect(cnn_out)["altered_or_missing"] == []
    assert inspect(write_recipe(tmp_path, images))["recipe"]["quantize"]["calib_images"] == 16
    assert run_cli("inspect", str(cnn_out / "quantize.json")).stdout.startswith(
        "kind: quantize record"
    )
    odd = tmp_path / "odd.json"
    for text in (
        '{"verb": "bench", "rows": [{"a": {"b": [{"c": 1}]}}, "x"]}',
        '{"verb": ["a"]}',
        '{"verb": "search", "tries": [{}]}',
    ):
        odd.write_text(text)
        assert run_cli("inspect", str(odd)).stdout.startswith("kind: ")
    code = (
        f"import sys; from trtq import inspect; inspect({str(odd)!r}); assert 'torch' not in "
        "sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_inspect_says_what_was_altered_and_what_it_cannot_read(cnn_out, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(cnn_out, copy)
    with (copy / "model.qdq.onnx").open("ab") as handle:
        handle.write(b"x")
    assert inspect(copy)["altered_or_missing"] == ["model.qdq.onnx"]
    (tmp_path / "x.bin").write_bytes(b"1")
    with pytest.raises(ArtifactError, match="trtq writes .onnx"):
        inspect(tmp_path / "x.bin")
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="it holds no JSON object"):
        inspect(tmp_path / "x.json")
    (tmp_path / "y.json").write_text('{"a": 1')
    with pytest.raises(ArtifactError, match="it is not whole JSON"):
        inspect(tmp_path / "y.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="nothing of trtq's"):
        inspect(tmp_path / "empty")


def test_a_calibration_cache_of_tensorrt_is_explained(tmp_path):
    """0x3c010204 is 0.00787... = 1/127 in float32: the range is 1."""
    path = tmp_path / "calibration.cache"
    path.write_text("TRT-8502-EntropyCalibration2\ninput: 3c010204\nconv.out: 3c810204\n")
    info = inspect(path)
    assert info["header"] == "TRT-8502-EntropyCalibration2"
    assert (info["ranges"], info["amax"]) == (2, {"input": 1.0, "conv.out": 2.0})
    assert run_cli("inspect", str(path)).stdout.startswith("kind: calibration cache of TensorRT")
    path.write_text("no cache\n")
    with pytest.raises(EncodingsError, match=r"calibration\.cache"):
        inspect(path)


def test_a_file_with_stored_4_bit_weights_alone_is_a_qdq_file(tmp_path):
    """Its activations are floats: it has no QuantizeLinear."""
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "s"], ["w"], axis=0),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="product"),
    ]
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2]) for n in "xy")
    codes = helper.make_tensor("codes", TensorProto.INT4, [2, 2], [1, -2, 3, -4])
    scales = helper.make_tensor("s", TensorProto.FLOAT, [2], [0.5, 0.25])
    graph = helper.make_graph(nodes, "g", [x], [y], [codes, scales])
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "w4.onnx")
    info = inspect(tmp_path / "w4.onnx")
    assert (info["kind"], info["float_layers"]) == ("Q/DQ ONNX", ["product"])
