"""The trtexec backend, against a stand-in that accepts exactly the flags of each release."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from trtq import BuildSpec, build
from trtq.engine.settings import Settings
from trtq.engine.trtexec import TrtexecBuilder, parse_number
from trtq.errors import EngineError, MissingExtraError
from trtq.export.calibration_cache import version_of
from trtq.platform.releases import opset_read, releases
from trtq.platform.target import Target
from trtq.progress import Silent
from trtq.testing.trtexec import ACCEPTED, write_fake_trtexec


def release_of(text: str) -> tuple[int, int]:
    return version_of(parse_number(text))


@pytest.mark.parametrize("version", ACCEPTED)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_release_gets_flags_it_knows(version, precision, cnn13, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, version)))
    out = tmp_path / "e.engine"
    made = build(
        BuildSpec(
            onnx=f"{cnn13}/model.qdq.onnx",
            target="orin",
            backend="trtexec",
            precision=precision,
            out=str(out),
        )
    )
    line = made.builder.command
    assert made.builder.backend == "trtexec"
    assert made.builder.version.split(".")[:2] == [
        str(v) for v in release_of(f"[TensorRT {version}]")
    ]
    assert f"--saveEngine={out}" in line
    assert (
        "--minShapes=input:1x3x32x32 --optShapes=input:8x3x32x32 --maxShapes=input:32x3x32x32"
        in line
    )
    old = release_of(f"[TensorRT {version}]") < (10, 0)
    assert ("--int8" in line) == old
    assert ("--fp16" in line) == (old and precision == "fp16")
    assert ("--workspace=1024" in line) == (release_of(f"[TensorRT {version}]") < (8, 4))
    assert made.builder_log == ["[TRT] a warning of the library"]
    assert "INT8 coverage unknown for this builder" in made.summary


def test_the_files_say_their_opset(cnn13, cnn_out):
    versions = [onnx.load(f / "model.qdq.onnx").opset_import[0].version for f in (cnn13, cnn_out)]
    assert versions == [13, 20]


def test_a_file_the_parser_cannot_read(cnn_out, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v8201")))
    with pytest.raises(
        EngineError,
        match=r"TensorRT 8.2 cannot read .*opset is 20, the parser knows up to 13.*--opset 13",
    ):
        build(
            BuildSpec(
                onnx=f"{cnn_out}/model.qdq.onnx",
                target="xavier",
                backend="trtexec",
                out=f"{tmp_path}/e.engine",
            )
        )
    assert not (tmp_path / "e.engine").exists()
    theirs = onnx.load(cnn_out / "model.qdq.onnx")
    del theirs.metadata_props[:]
    onnx.save(theirs, tmp_path / "theirs.onnx")
    with pytest.raises(
        EngineError,
        match=r"Export it again with opset 13: torch.onnx.export\(..., opset_version=13\)",
    ):
        build(
            BuildSpec(
                onnx=f"{tmp_path}/theirs.onnx",
                target="xavier",
                backend="trtexec",
                out=f"{tmp_path}/e.engine",
            )
        )


def test_another_gpu_than_the_target(cnn13, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v100300", sm="8.6")))
    with pytest.raises(
        EngineError,
        match=r"GPU is not Jetson AGX Orin: .*compute capability 8.6; the target has "
        r"8.7.*--target sm86",
    ):
        build(
            BuildSpec(
                onnx=f"{cnn13}/model.qdq.onnx",
                target="orin",
                backend="trtexec",
                out=f"{tmp_path}/e.engine",
            )
        )


def test_its_errors_reach_the_user(cnn13, tmp_path, monkeypatch):
    model = onnx.load(cnn13 / "model.qdq.onnx")
    model.doc_string = "refuse-me"
    onnx.save(model, tmp_path / "m.onnx")
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v100300")))
    with pytest.raises(
        EngineError,
        match=r"trtexec cannot build the engine for Jetson AGX Orin: .*While parsing node number 0",
    ):
        build(
            BuildSpec(
                onnx=f"{tmp_path}/m.onnx",
                target="orin",
                backend="trtexec",
                out=f"{tmp_path}/e.engine",
            )
        )


def test_no_trtexec_and_one_of_no_known_version(cnn13, tmp_path, monkeypatch):
    monkeypatch.delenv("TRTQ_TRTEXEC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    asked = BuildSpec(
        onnx=f"{cnn13}/model.qdq.onnx",
        target="orin",
        backend="trtexec",
        out=f"{tmp_path}/e.engine",
    )
    with pytest.raises(
        MissingExtraError,
        match="There is no trtexec here: looked at TRTQ_TRTEXEC, the PATH and /usr/src/tensorrt",
    ):
        build(asked)
    shutil.copy("/bin/true", tmp_path / "trtexec")
    with pytest.raises(EngineError, match="Cannot tell which version of trtexec this is"):
        build(asked)
    (tmp_path / "trtexec").write_text("no program")
    (tmp_path / "trtexec").chmod(0o755)
    with pytest.raises(EngineError, match="Cannot run .*trtexec"):
        build(asked)


def test_versions_and_flags():
    assert release_of("&&&& RUNNING TensorRT.trtexec [TensorRT v8001] # x") == (8, 0)
    assert release_of("&&&& RUNNING TensorRT.trtexec [TensorRT v110100] [b7] # x") == (11, 1)
    assert [opset_read(v) for v in ((8, 2), (8, 5), (10, 3), (11, 0))] == [13, 17, 21, 25]
    with pytest.raises(EngineError, match=r"TensorRT 7.2 is too old"):
        opset_read((7, 2))
    settings = Settings(target=Target.parse("xavier"), shapes={}, quantized=False, half=True)
    line = TrtexecBuilder("t", (8, 4), Silent()).command(Path("m"), Path("e"), settings)
    assert line == [
        "t",
        "--onnx=m",
        "--saveEngine=e",
        "--fp16",
        "--profilingVerbosity=detailed",
        "--buildOnly",
    ]
    # Every flag of the table is one that the stand-in's releases at both ends of its range know.
    for version, accepted in ACCEPTED.items():
        number = release_of(f"[TensorRT {version}]")
        within = {
            f
            for f, (first, last) in releases().flags.items()
            if number >= first and (last is None or number <= last)
        }
        assert within <= set(accepted.split())
