"""Targets and TensorRT versions.

What each reads, what a device lacks, the one command line, the fallback.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.conftest import run_cli, spec
from trtq import BuildSpec, build, quantize
from trtq.bench import trtexec_bench
from trtq.engine.build import dry_run
from trtq.engine.target_table import list_targets, reads
from trtq.errors import EngineError, ExportError, UsageError
from trtq.export.codes import count_qdq
from trtq.export.onnx_file import load_onnx
from trtq.export.ort import open_session, run_batch
from trtq.export.strip import strip_qdq
from trtq.platform.catalogue import catalogue
from trtq.platform.releases import has_flag, offers, parse_version, releases
from trtq.platform.target import Target
from trtq.testing.trtexec import ACCEPTED, write_fake_trtexec
from trtq.typed import toml_as


@pytest.fixture(scope="module")
def old_files(quantized) -> Path:
    return quantized("xavier-8.2", target="xavier@8.2")


@pytest.mark.parametrize(
    ("text", "release", "opset", "formats"),
    [
        ("nano@8.2", (8, 2), 13, ("FP16",)),
        ("xavier@8.5", (8, 5), 16, ("FP16", "INT8")),
        ("xavier", (8, 5), 16, ("FP16", "INT8")),
        ("orin@10.3", (10, 3), 20, ("FP16", "INT8", "BF16")),
        ("thor@10.13", (10, 13), 20, ("FP16", "INT8", "BF16", "FP8", "FP4")),
        ("t4@10.16", (10, 16), 20, ("FP16", "INT8")),
        ("rtx3080@11.4", (11, 4), 20, ("FP16", "INT8", "BF16")),
        ("thor@11.4", (11, 4), 20, ("FP16", "INT8", "BF16", "FP8", "FP4")),
        ("h200@11.5", (11, 5), 20, ("FP16", "INT8", "BF16", "FP8")),
        ("h200@11.4", (11, 4), 20, ("FP16", "INT8", "BF16", "FP8")),
        ("sm86@10.0", (10, 0), 20, ("FP16", "INT8", "BF16")),
        ("rtx4090", None, 20, ("FP16", "INT8", "BF16", "FP8")),
    ],
)
def test_targets_of_every_generation(text, release, opset, formats):
    target = Target.parse(text)
    assert (target.release, target.opset, target.formats) == (release, opset, formats)


def test_targets_that_do_not_exist():
    with pytest.raises(UsageError, match=r"Unknown target 'oring'. .*orin"):
        Target.parse("oring")
    with pytest.raises(
        UsageError,
        match=r"Cannot build for Jetson Nano with TensorRT 8.5: the last release with kernels for "
        r"it is 8.2. Write nano@8.2",
    ):
        Target.parse("nano@8.5")
    with pytest.raises(
        UsageError,
        match=r"Cannot build for GeForce RTX 5090 with TensorRT 8.6: the first release with "
        r"kernels for it is 10.8",
    ):
        Target.parse("rtx5090@8.6")
    with pytest.raises(
        UsageError,
        match=r"Cannot read the TensorRT version of 'orin@ten': found 'ten'. Write it like "
        r"orin@10.3",
    ):
        Target.parse("orin@ten")
    with pytest.raises(
        UsageError, match=r"Cannot build for t4@7.1: trtq knows TensorRT from 8.0 on"
    ):
        Target.parse("t4@7.1")


def test_the_table_of_versions_is_consistent():
    for name, (first, last) in releases().flags.items():
        assert last is None or first <= last, name
    # A release has a way to say INT8, a way to build without running, and a way to give it memory.
    for version in ((8, 0), (8, 2), (8, 5), (8, 6), (10, 3), (10, 16), (11, 4)):
        assert has_flag("int8", version) or offers("typed", version)
        assert has_flag("buildOnly", version) or has_flag("skipInference", version)
        assert has_flag("workspace", version) or has_flag("memPoolSize", version)


def test_listing(tmp_path: Path):
    rows = list_targets()
    assert [r.name for r in rows] == list(catalogue().targets)
    assert (
        reads(list_targets("xavier")[0])
        == "TensorRT 8.5: opset 16 (reads up to 17), precision by flags"
    )
    assert (
        reads(list_targets("h200@11.4")[0])
        == "TensorRT 11.4: opset 20 (reads up to 25), types in the graph"
    )
    assert "typed DLA" in list_targets("orin@11.4")[0].features
    for name in ("thor@11.4", "h200@11.5", "nano", "orin-nano@11.4"):
        assert not {"DLA", "typed DLA"} & set(list_targets(name)[0].features), name
    done = run_cli("targets", "nano")
    assert "multiplies in FP32, FP16\n" in done.stdout
    assert "8.2 is the last release with kernels for it" in done.stdout
    assert "calibration cache" in done.stdout
    assert len(json.loads(run_cli("targets", "--json").stdout)) == len(catalogue().targets)
    assert "Jetson AGX Orin" in run_cli("targets").stdout
    assert run_cli("targets", "nope").returncode == 2


def test_pain_27_a_device_without_int8_is_refused_before_any_work(images: Path, tmp_path: Path):
    with pytest.raises(
        UsageError,
        match=r"Cannot quantize to INT8 for Jetson Nano: compute capability 5.3 has no INT8 "
        r"arithmetic.*--fallback: FP16",
    ):
        quantize(spec(images, tmp_path / "o", target="nano"))
    assert not (tmp_path / "o").exists()
    with pytest.raises(
        UsageError,
        match=r"Cannot write opset 17 for Jetson AGX Xavier: TensorRT 8.5 has every op that trtq "
        r"writes up to opset 16",
    ):
        quantize(spec(images, tmp_path / "o", target="xavier", opset=17))


def test_int4_for_a_release_that_has_it(images: Path, tmp_path: Path):
    quantize(spec(images, tmp_path / "o", target="orin@10.3", bits="w4a8", weight_storage="int4"))
    assert onnx.load(tmp_path / "o/model.qdq.onnx").opset_import[0].version == 21
    with pytest.raises(UsageError, match="Cannot store weights as INT4"):
        quantize(spec(images, tmp_path / "p", target="xavier", bits="w4a8", weight_storage="int4"))


def test_the_target_chooses_the_opset(old_files: Path):
    assert onnx.load(old_files / "model.qdq.onnx").opset_import[0].version == 13


def test_what_goes_in_front_of_the_codes_comes_back(cnn_out: Path, images: Path, tmp_path: Path):
    plain = strip_qdq(load_onnx(cnn_out / "model.qdq.onnx"))
    assert count_qdq(plain) == 0
    onnx.checker.check_model(plain)
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    wanted = run_batch(open_session(cnn_out / "model.fp32.onnx"), x)[0]
    np.testing.assert_allclose(run_batch(open_session(plain), x)[0], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ExportError, match="another node is between its two halves"):
        between = load_onnx(cnn_out / "model.qdq.onnx")
        dq = next(
            n
            for n in between.graph.node
            if n.op_type == "DequantizeLinear" and n.name == "conv1.input/DequantizeLinear"
        )
        q = dq.input[0]
        place = list(between.graph.node).index(dq)
        between.graph.node.insert(place, onnx.helper.make_node("Clip", [q], ["between"]))
        dq.input[0] = "between"
        strip_qdq(between)
    # weights stored as codes come back as the values of their codes
    out = tmp_path / "int4"
    quantize(spec(images, out, bits="w4a8", weight_storage="int4", opset=21))
    stored = strip_qdq(load_onnx(out / "model.qdq.onnx"))
    assert count_qdq(stored) == 0
    assert np.isfinite(run_batch(open_session(stored), x)[0]).all()


def test_the_nano_gets_its_fp16_engine(old_files: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v8201", sm="5.3")))
    asked = {
        "onnx": f"{old_files}/model.qdq.onnx",
        "target": "nano",
        "backend": "trtexec",
        "out": f"{tmp_path}/e.engine",
    }
    with pytest.raises(
        EngineError,
        match=r"Cannot build INT8 for Jetson Nano: .*no INT8 arithmetic. Add --fallback "
        r"for the FP16 engine",
    ):
        build(BuildSpec(**asked))
    made = build(BuildSpec(**asked, fallback=True))
    assert made.quantized_tensors == 0
    assert made.precision == "fp16"
    assert (
        made.fallback
        == "Jetson Nano (compute capability 5.3) has no INT8 arithmetic: FP16 of the same model"
    )
    assert "fell back: Jetson Nano" in made.summary
    assert "--fp16" in made.builder.command
    assert "--int8" not in made.builder.command


def test_the_version_in_the_target_must_be_the_one_here(
    old_files: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v8502", sm="7.2")))
    with pytest.raises(
        EngineError,
        match=r"Cannot build for xavier@8.4 here: .*trtexec is of TensorRT 8.5, not 8.4",
    ):
        build(
            BuildSpec(
                onnx=f"{old_files}/model.qdq.onnx",
                target="xavier@8.4",
                backend="trtexec",
                out=f"{tmp_path}/e.engine",
            )
        )


RELEASES = {
    "v8001": "8.0",
    "v8201": "8.2",
    "v8401": "8.4",
    "v8502": "8.5",
    "v8601": "8.6",
    "v9300": "9.3",
    "v100000": "10.0",
    "v100300": "10.3",
    "v100700": "10.7",
    "v101300": "10.13",
    "v101600": "10.16",
    "v110000": "11.0",
    "v110100": "11.1",
    "v110500": "11.5",
}


@pytest.mark.parametrize("version", ACCEPTED)
def test_a_dry_run_prints_the_one_line_and_that_release_takes_it(
    version, old_files: Path, tmp_path: Path
):
    import shlex
    import subprocess

    text = dry_run(
        BuildSpec(
            onnx=f"{old_files}/model.qdq.onnx",
            target=f"sm86@{RELEASES[version]}",
            backend="trtexec",
            out=f"{tmp_path}/e.engine",
        )
    )
    (line,) = text.splitlines()
    words = shlex.split(line)
    assert words[0] == "trtexec"
    done = subprocess.run(
        [str(write_fake_trtexec(tmp_path, version, sm="8.6")), *words[1:]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert not (tmp_path / "e.engine.json").exists()


def documented(release: str) -> set[str]:
    """Return the flags of trtexec that a document or the source names up to a release."""
    file = Path(__file__).with_name("trtexec_flags.toml")
    rows = toml_as(file.read_bytes(), dict[str, dict[str, str]])
    return {f for at, row in rows.items() if at <= release for f in row["added"].split()}


@pytest.mark.parametrize("release", ["11.4", "11.5"])
def test_lines_of_the_newest_releases_use_documented_flags_alone(
    release, cnn13: Path, tmp_path: Path
):
    every = {"optimization_level": 5, "version_compatible": True, "strip_weights": True}
    every |= {"timing_cache": "t.cache", "workspace": 64, "batch": (1, 2, 4)}
    lines = 0
    for name in catalogue().targets:
        target = Target.parse(name)
        if not target.facts.kernels.covers(parse_version(release)):
            continue
        dla = {"dla": 0, "precision": "fp16"} if not target.lacks("typed DLA") else {}
        wide = {"hardware_compatible": "ampere+"} if target.sm >= 80 else {}
        for options in ({}, {"precision": "fp16"}, {**every, **wide}, dla):
            onnx_file = "model.fp32.onnx" if "precision" in options else "model.qdq.onnx"
            asked = BuildSpec(
                onnx=f"{cnn13}/{onnx_file}",
                target=f"{name}@{release}",
                backend="trtexec",
                out=f"{tmp_path}/e.engine",
                **options,
            )
            flags = re.findall(r" --(\w+)", dry_run(asked))
            assert len(flags) > 4
            assert set(flags) <= documented(release), (name, set(flags) - documented(release))
            lines += 1
    assert lines > 40
    times = trtexec_bench.command("t", parse_version(release), Path("e"), times="t", dla=0)
    assert {w[2:].partition("=")[0] for w in times[1:]} <= documented(release)


def test_dry_runs_on_the_command_line(old_files: Path, cnn_out: Path, tmp_path: Path):
    asked = ["--backend", "trtexec", "--dry-run", "--out", f"{tmp_path}/e.engine"]
    done = run_cli("build", f"{old_files}/model.qdq.onnx", "--target", "xavier@8.2", *asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        f"trtexec --onnx={old_files}/model.qdq.onnx --saveEngine={tmp_path}/e.engine "
        "--minShapes=input:1x3x32x32 --optShapes=input:8x3x32x32 --maxShapes=input:32x3x32x32 "
        "--int8 --workspace=1024 --profilingVerbosity=detailed --buildOnly\n"
    )
    nano = run_cli("build", f"{old_files}/model.qdq.onnx", "--target", "nano", "--fallback", *asked)
    assert (
        "Jetson Nano (compute capability 5.3) has no INT8 arithmetic: FP16 of the same model"
        in nano.stderr
    )
    assert f"--onnx={tmp_path}/e.onnx" in nano.stdout
    assert count_qdq(load_onnx(tmp_path / "e.onnx")) == 0  # what the line builds from
    typed = run_cli(
        "build", f"{cnn_out}/model.qdq.onnx", "--target", "orin@10.3", "--precision", "fp16", *asked
    )
    assert "the graph has FP16 types" in typed.stderr
    assert len(typed.stdout.splitlines()) == len(nano.stdout.splitlines()) == 1
    assert any(
        i.data_type == onnx.TensorProto.FLOAT16
        for i in load_onnx(tmp_path / "e.onnx").graph.initializer
    )
    assert "--fp16" in nano.stdout
    newer = run_cli("build", f"{cnn_out}/model.qdq.onnx", "--target", "xavier@8.2", *asked)
    assert newer.returncode != 0
    assert "TensorRT 8.2 cannot read" in newer.stderr
    unknown = run_cli(
        "build",
        f"{cnn_out}/model.qdq.onnx",
        "--target",
        "rtx3080",
        *asked,
        env={"PATH": "/nowhere"},
    )
    assert (
        "rtx3080 names no TensorRT version and there is no trtexec here. Write rtx3080@10.16"
        in unknown.stderr
    )


def test_the_python_that_a_dry_run_prints_builds_the_engine(cnn_out: Path, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    import subprocess
    import sys

    plan = tmp_path / "e.engine"
    text = dry_run(
        BuildSpec(
            onnx=f"{cnn_out}/model.qdq.onnx",
            target="rtx3080",
            backend="tensorrt-rtx",
            out=str(plan),
        )
    )
    subprocess.run([sys.executable, "-c", text], check=True, capture_output=True)
    assert plan.stat().st_size > 1000
