"""TensorRT's calibration caches: out of a Q/DQ file, into one, and into a build that reads them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import read, run_cli, spec
from trtq import (
    BuildSpec,
    Encodings,
    ExportCalibSpec,
    ImportCalibSpec,
    build,
    export_calib,
    import_calib,
    quantize,
)
from trtq.errors import EncodingsError, EngineError, ExportError, UsageError
from trtq.export.calibration_cache import amax_of, read_cache, write_cache
from trtq.export.codes import count_qdq
from trtq.export.insert_qdq import insert_qdq
from trtq.export.onnx_file import load_onnx
from trtq.export.ort import open_session, run_batch
from trtq.testing.trtexec import write_fake_trtexec


def scales_of(path: Path) -> dict[str, float]:
    model = onnx.load(path)
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    return {
        n.input[0]: float(constants[n.input[1]])
        for n in model.graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] not in constants
    }


# ---- the text ----------------------------------------------------------------------------------


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.text("abc/:. ()", min_size=1).map(str.strip).filter(bool),
        st.floats(0, 2.0**100, width=32),
        max_size=6,
    )
)
def test_round_trips_are_exact(scales):
    found = read_cache(write_cache(scales, 8502), "c")
    assert found.version == (8, 5)
    assert found.scales == scales


@settings(max_examples=200)
@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_the_range_of_a_scale_gives_the_scale_back(scale):
    back = np.float32(np.float32(amax_of(scale)) / np.float32(127))
    assert abs(int(back.view(np.int32)) - int(np.float32(scale).view(np.int32))) <= 1


def test_a_cache_from_the_field():
    text = (
        "TRT-8401-EntropyCalibration2\nimages: 3c010a14\n(Unnamed Layer* 3) [Shuffle]_output: "
        "3caa54fc\nscope:0/add: 0\n"
    )
    found = read_cache(text, "c")
    assert (found.version, found.algorithm) == ((8, 4), "EntropyCalibration2")
    assert found.scales["(Unnamed Layer* 3) [Shuffle]_output"] * 127 == pytest.approx(
        2.64, abs=0.01
    )
    assert found.scales["scope:0/add"] == 0.0
    assert read_cache("TRT-100300-MinMaxCalibration\n", "c").version == (10, 3)


def test_what_is_no_cache():
    with pytest.raises(
        EncodingsError, match="c is no calibration cache of TensorRT: its first line is 'hello'"
    ):
        read_cache("hello\n", "c")
    with pytest.raises(EncodingsError, match="its first line is 'nothing'"):
        read_cache("", "c")
    for line in ("input 3c010204", "input: 3c01020g", "input: 3c0102041", ": 3c010204"):
        with pytest.raises(EncodingsError, match="Cannot read line 2 of c: found"):
            read_cache(f"TRT-8502-EntropyCalibration2\n{line}\n", "c")
    nan, negative = (f"{struct.unpack('>I', struct.pack('>f', v))[0]:x}" for v in (math.nan, -1.0))
    for digits in (nan, negative):
        with pytest.raises(EncodingsError, match="Cannot use line 2 of c: its scale is"):
            read_cache(f"TRT-8502-EntropyCalibration2\ninput: {digits}\n", "c")
    with pytest.raises(EncodingsError, match="line 3 names a again with another scale"):
        read_cache("TRT-8502-EntropyCalibration2\na: 3c010204\na: 3c010205\n", "c")
    with pytest.raises(EncodingsError, match="has a line break"):
        write_cache({"a\nb": 1.0}, 8502)
    with pytest.raises(EncodingsError, match="the scale of a is nan"):
        write_cache({"a": math.nan}, 8502)


# ---- out of a Q/DQ file and back ---------------------------------------------------------------


def test_there_and_back_to_the_same_scales_and_answers(cnn13: Path, tmp_path: Path):
    cache = tmp_path / "calibration.cache"
    record = export_calib(
        ExportCalibSpec(onnx=f"{cnn13}/model.qdq.onnx", target="xavier@8.5", out=str(cache))
    )
    assert cache.read_text().startswith("TRT-8502-EntropyCalibration2\ninput: ")
    assert record.tensors == len(scales_of(cnn13 / "model.qdq.onnx"))
    assert read_cache(cache.read_text(), "c").scales == scales_of(cnn13 / "model.qdq.onnx")
    assert any(
        "conv1/Conv.out" in name for name in record.missing
    )  # inside a fusion: no pair reads it
    assert read(tmp_path / "calibration.cache.json")["missing"] == record.missing
    back = import_calib(
        ImportCalibSpec(cache=str(cache), onnx=f"{cnn13}/model.fp32.onnx", out=str(tmp_path / "o"))
    )
    assert back.missing == {}
    assert back.unused == []
    assert scales_of(tmp_path / "o/model.qdq.onnx") == scales_of(cnn13 / "model.qdq.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "o/model.qdq.onnx"), full_check=True)
    x = np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)
    ours, theirs, plain = (
        run_batch(open_session(p), x)[0]
        for p in (
            tmp_path / "o/model.qdq.onnx",
            cnn13 / "model.qdq.onnx",
            cnn13 / "model.fp32.onnx",
        )
    )
    assert (
        np.linalg.norm(ours - theirs) < 0.5 * np.linalg.norm(theirs - plain) + 1e-6
    )  # weights' ranges may differ, activations' do not
    encodings = Encodings.load(tmp_path / "o/encodings.safetensors")
    for name, scale in scales_of(tmp_path / "o/model.qdq.onnx").items():
        assert float(encodings.scale(name)) == pytest.approx(scale, rel=2e-7)


def linear(transposed: bool) -> onnx.ModelProto:
    """conv -> flatten -> Gemm or MatMul, with a residual beside the conv."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight[2] = 0.0
    second = rng.standard_normal((5, 4) if transposed else (4, 5)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1] * 4),
        helper.make_node("Conv", ["x", "w"], ["d"], name="other", pads=[1] * 4),
        helper.make_node("Relu", ["d"], ["r"]),
        helper.make_node("Add", ["c", "r"], ["s"], name="add"),
        helper.make_node("GlobalAveragePool", ["s"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Gemm", ["f", "m"], ["y"], name="fc", transB=1)
        if transposed
        else helper.make_node("MatMul", ["f", "m"], ["y"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(second, "m")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("transposed", [True, False])
def test_somebody_elses_file(transposed, tmp_path: Path):
    model = linear(transposed)
    done = insert_qdq(model, {"x": 0.03, "r": 0.15, "f": 0.05, "nowhere": 0.5})
    onnx.checker.check_model(done.model, full_check=True)
    assert count_qdq(model) == 0
    assert (
        count_qdq(done.model) == 5
    )  # x, r, f and two weights, one of them shared by two convolutions
    assert done.unused == ["nowhere"]
    assert done.axes == {"w": 0, "m": 0 if transposed else 1}
    assert done.weights["w"][2] == 1.0  # a channel of zeros
    x = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    got, wanted = (run_batch(open_session(m), x)[0] for m in (done.model, model))
    assert np.abs(got - wanted).max() < 0.2 * np.abs(wanted).max()
    partly = insert_qdq(model, {"f": 0.0, "r": 0.01})
    assert partly.missing == {
        "conv": "its input x has no range",
        "other": "its input x has no range",
        "fc": "its input f was never active in calibration",
    }


def test_what_cannot_be_imported(cnn13: Path, tmp_path: Path):
    cache = tmp_path / "c"
    cache.write_text("TRT-8502-EntropyCalibration2\nelsewhere: 3c010204\n")
    with pytest.raises(
        EncodingsError,
        match="was not made for .*: no layer of it reads a tensor with a range; the cache names "
        "elsewhere",
    ):
        import_calib(
            ImportCalibSpec(
                cache=str(cache), onnx=f"{cnn13}/model.fp32.onnx", out=str(tmp_path / "o")
            )
        )
    with pytest.raises(ExportError, match="it has Q/DQ pairs already"):
        import_calib(
            ImportCalibSpec(
                cache=str(cache), onnx=f"{cnn13}/model.qdq.onnx", out=str(tmp_path / "o")
            )
        )
    with pytest.raises(EncodingsError, match="Cannot read the calibration cache"):
        import_calib(
            ImportCalibSpec(
                cache=f"{tmp_path}/none",
                onnx=f"{cnn13}/model.fp32.onnx",
                out=str(tmp_path / "o"),
            )
        )
    old = linear(False)
    old.opset_import[0].version = 11
    with pytest.raises(
        ExportError, match="its opset is 11, and scales per channel exist from 13 on"
    ):
        insert_qdq(old, {"x": 0.1})


def test_what_cannot_be_exported(cnn13: Path, tmp_path: Path):
    def asked(target: str, name: str = "model.qdq.onnx") -> ExportCalibSpec:
        return ExportCalibSpec(onnx=f"{cnn13}/{name}", target=target, out=f"{tmp_path}/c")

    with pytest.raises(
        UsageError, match="Cannot export a calibration cache for .*: TensorRT 11.0 has no"
    ):
        export_calib(asked("rtx3080@11.0"))
    with pytest.raises(UsageError, match="rtx3080 names no TensorRT version"):
        export_calib(asked("rtx3080"))
    with pytest.raises(UsageError, match="Cannot export a cache of INT8 for Jetson Nano"):
        export_calib(asked("nano"))
    with pytest.raises(ExportError, match="There are no ranges in .*model.fp32.onnx"):
        export_calib(asked("xavier", "model.fp32.onnx"))


# ---- into a build ------------------------------------------------------------------------------


def test_what_a_cache_cannot_hold(images: Path, tmp_path: Path):
    vit = "trtq.testing.models:tiny_vit"
    quantize(
        spec(
            images,
            tmp_path / "s",
            model=vit,
            model_arg={"outlier": 30.0},
            method=["smooth"],
            opset=17,
        )
    )
    asked = ExportCalibSpec(
        onnx=f"{tmp_path}/s/model.qdq.onnx", target="rtx3080@8.6", out=f"{tmp_path}/c"
    )
    with pytest.raises(ExportError, match="smooth folded factors into it"):
        export_calib(asked)
    (tmp_path / "s/encodings.safetensors").unlink()
    with pytest.raises(
        EncodingsError, match="Cannot read the encodings .*there is no such file"
    ):  # then it cannot be known
        export_calib(asked)
    model = onnx.load(tmp_path / "s/model.fp32.onnx")
    onnx.save(model, tmp_path / "s/plain.onnx")
    wrong = linear(True)
    wrong.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["x2"]))
    wrong.graph.node.insert(0, helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]))
    wrong.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.uint8(0), "z")]
    )
    onnx.save(wrong, tmp_path / "u8.onnx")
    with pytest.raises(
        ExportError,
        match="Cannot write the range of x into a cache: a cache holds ranges of INT8 codes "
        "around 0",
    ):
        export_calib(
            ExportCalibSpec(
                onnx=f"{tmp_path}/u8.onnx",
                network=f"{tmp_path}/s/plain.onnx",
                target="rtx3080@8.6",
                out=f"{tmp_path}/c",
            )
        )


def test_a_build_reads_the_cache_of_its_own_release_and_no_other(
    cnn13: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v8502", sm="7.2")))
    cache = tmp_path / "c"
    export_calib(
        ExportCalibSpec(
            onnx=f"{cnn13}/model.qdq.onnx",
            target="xavier@8.5",
            out=str(cache),
            release_number=8502,
        )
    )
    asked = {
        "onnx": f"{cnn13}/model.fp32.onnx",
        "target": "xavier",
        "backend": "trtexec",
        "out": f"{tmp_path}/e.engine",
        "calibration": str(cache),
    }
    made = build(BuildSpec(**asked, precision="fp16"))
    assert f"--calib={cache}" in made.builder.command
    assert "--int8" in made.builder.command
    assert "--fp16" in made.builder.command
    with pytest.raises(UsageError, match="--calibration needs --backend trtexec"):
        build(BuildSpec(**{**asked, "backend": "auto"}))
    with pytest.raises(EngineError, match="it has Q/DQ pairs, and TensorRT then reads no cache"):
        build(BuildSpec(**{**asked, "onnx": f"{cnn13}/model.qdq.onnx"}))
    text = cache.read_text()
    for other in ("8401", "8500"):  # another release, and another patch of the same
        cache.write_text(text.replace("8502", other))
        wanted = (
            f"it is of TRT-{other}, EntropyCalibration2; TRT-8502 ignores it and calibrates on "
            "random numbers.*--release-number 8502"
        )
        with pytest.raises(EngineError, match=wanted):
            build(BuildSpec(**asked))
    cache.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EngineError, match="Cannot build .* with"):
        build(BuildSpec(**asked))
    # On 10 a cache needs a weakly typed build: the flag, and no types in the graph.
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v100300", sm="8.7")))
    export_calib(
        ExportCalibSpec(
            onnx=f"{cnn13}/model.qdq.onnx",
            target="orin@10.3",
            out=str(cache),
            release_number=100300,
        )
    )
    ten = build(BuildSpec(**{**asked, "target": "orin"}, precision="fp16")).builder.command
    assert "--int8" in ten
    assert "--fp16" in ten
    assert "--stronglyTyped" not in ten
    cache.write_text(text)
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v110100", sm="8.6")))
    with pytest.raises(
        EngineError, match="TensorRT 11.1 reads no calibration caches.*trtq import-calib"
    ):
        build(BuildSpec(**{**asked, "target": "rtx3080"}))


def test_on_the_command_line(cnn13: Path, tmp_path: Path):
    cache = tmp_path / "c"
    done = run_cli(
        "export-calib", f"{cnn13}/model.qdq.onnx", "--target", "orin@8.5", "--out", str(cache)
    )
    assert done.returncode == 0, done.stderr
    assert "ranges in use" in done.stdout
    back = run_cli(
        "import-calib",
        str(cache),
        "--onnx",
        f"{cnn13}/model.fp32.onnx",
        "--out",
        f"{tmp_path}/o",
        "--json",
    )
    assert back.returncode == 0, back.stderr
    assert json.loads(back.stdout)["header"] == "TRT 8.5 EntropyCalibration2"
    assert load_onnx(tmp_path / "o/model.qdq.onnx").graph.node
