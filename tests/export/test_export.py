"""One set of encodings for every target.

The scales are the same, the files lint for their reader, and the answers are the same.
"""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.conftest import run_cli, spec
from trtq import Encodings, ExportSpec, LintSpec, QuantizeSpec, export_profiles, quantize, run_lint
from trtq.errors import EncodingsError, ExportError, UsageError
from trtq.export.calibration_cache import read_cache
from trtq.export.codes import count_qdq
from trtq.export.fp16_ranges import FLOAT_NODES
from trtq.export.lint_view import View
from trtq.export.onnx_file import get_metadata, load_onnx
from trtq.export.profile import furthest_scale

GENERATIONS = (
    "xavier@8.0",
    "xavier@8.2",
    "xavier@8.5",
    "sm86@8.6",
    "orin@10.3",
    "thor@10.13",
    "t4@10.16",
    "h200@11.4",
    "rtx4090",
)


def wanted(images: Path, ptq: Path, out: Path, *targets: str, **more) -> ExportSpec:
    given = {
        "model": "trtq.testing.models:tiny_vit",
        "data": str(images),
        "input_size": (3, 32, 32),
        "preset": "imagenet",
        "images": 16,
    }
    return ExportSpec(
        **{
            **given,
            "encodings": f"{ptq}/encodings.safetensors",
            "out": str(out),
            "target": targets,
            **more,
        }
    )


@pytest.fixture(scope="module")
def profiles(images, vit_out, tmp_path_factory):
    out = tmp_path_factory.mktemp("profiles")
    return out, export_profiles(
        wanted(images, vit_out, out, *GENERATIONS, "nano@8.2", fallback=True)
    )


def test_pain_5_one_model_for_every_generation(profiles, vit_out):
    """Every file lints for its reader.

    The scales of all files are those of the encodings, caches included.
    """
    out, record = profiles
    encodings = Encodings.load(vit_out / "encodings.safetensors")
    assert [p.target for p in record.profiles] == [*GENERATIONS, "nano@8.2"]
    for row in record.profiles:
        linted = run_lint(LintSpec(onnx=f"{out}/{row.file}", target=row.target))
        assert linted.passed, (row.target, linted.findings)
        model = load_onnx(out / row.file)
        assert model.opset_import[0].version == row.opset
        assert row.scales_ulp <= 1
        assert furthest_scale(model, encodings)[1] <= 1
        assert row.agreement == 100.0
    opsets = {p.target: p.opset for p in record.profiles}
    assert opsets == {
        "xavier@8.0": 13,
        "xavier@8.2": 13,
        "xavier@8.5": 16,
        "sm86@8.6": 17,
        "orin@10.3": 20,
        "thor@10.13": 20,
        "t4@10.16": 20,
        "h200@11.4": 20,
        "rtx4090": 20,
        "nano@8.2": 13,
    }
    assert "scales equal to 0 ulp" in record.summary


def test_each_generation_gets_its_own_ops_and_types(profiles):
    out, record = profiles
    files = {p.target: load_onnx(out / p.file) for p in record.profiles}
    ops = {t: {n.op_type for n in m.graph.node} for t, m in files.items()}
    halves = {
        t: any(i.data_type == onnx.TensorProto.FLOAT16 for i in m.graph.initializer)
        for t, m in files.items()
    }
    for target in ("xavier@8.0", "xavier@8.5", "nano@8.2"):
        assert not {"LayerNormalization", "Gelu"} & ops[target]
        assert not halves[target]
    assert "LayerNormalization" in ops["sm86@8.6"]
    assert "Gelu" not in ops["sm86@8.6"]
    assert {"LayerNormalization", "Gelu"} <= ops["orin@10.3"]
    assert halves["orin@10.3"] and halves["rtx4090"]
    assert count_qdq(files["nano@8.2"]) == 0
    nano = record.profiles[-1]
    assert (nano.pairs, nano.fallback) == (0, "Jetson Nano has no INT8 arithmetic: the float model")


def test_the_caches_hold_the_same_scales_bit_by_bit(profiles):
    out, record = profiles
    cached = [p for p in record.profiles if p.cache]
    assert [p.target for p in cached] == ["xavier@8.0", "xavier@8.2", "xavier@8.5", "sm86@8.6"]
    for row in cached:
        cache = read_cache((out / row.cache).read_text(), row.cache)
        view = View(load_onnx(out / row.file))
        plain = load_onnx(out / row.file.replace(".onnx", ".fp32.onnx"))
        names = {i.name for i in plain.graph.input} | {
            o for n in plain.graph.node for o in n.output
        }
        assert set(cache.scales) <= names  # of the network that the parser will make
        for node in view.nodes("QuantizeLinear"):
            if node.input[0] in cache.scales:
                held = np.float32(numpy_helper.to_array(view.constants[node.input[1]]))
                assert struct.pack(">f", held) == struct.pack(">f", cache.scales[node.input[0]])


def test_ranges_that_fp16_has_not_are_kept_out_of_it(images, tmp_path):
    quantize(spec(images, tmp_path / "q", model="tests.export.test_fp16:large"))
    given = {"model": "tests.export.test_fp16:large", "target": ("orin@10.3", "xavier@8.5")}
    record = export_profiles(wanted(images, tmp_path / "q", tmp_path / "p", **given))
    typed, flagged = record.profiles
    assert any("norm" in n for n in typed.float_nodes)
    assert typed.float_nodes.keys() != flagged.float_nodes.keys()  # decomposed there
    assert (
        get_metadata(load_onnx(tmp_path / "p/xavier-8.5.onnx"))[FLOAT_NODES] == flagged.float_nodes
    )
    # A build by flags takes them over layer by layer.
    done = run_cli(
        "build",
        f"{tmp_path}/p/xavier-8.5.onnx",
        "--target",
        "xavier@8.5",
        "--backend",
        "trtexec",
        "--precision",
        "fp16",
        "--dry-run",
        "--out",
        f"{tmp_path}/e.engine",
    )
    assert "--precisionConstraints=obey --layerPrecisions=" in done.stdout
    assert f"{next(iter(flagged.float_nodes))}:fp32" in done.stdout
    with pytest.raises(
        ExportError,
        match=r"orin-10.3.onnx does not compute what was simulated: its answers are .* dB from "
        r"torch's .*fp32",
    ):
        export_profiles(
            wanted(
                images,
                tmp_path / "q",
                tmp_path / "r",
                "orin@10.3",
                model="tests.export.test_fp16:large",
                half_sqnr=0.1,
            )
        )
    assert not (tmp_path / "r/orin-10.3.onnx").exists()
    plain = export_profiles(
        wanted(
            images,
            tmp_path / "q",
            tmp_path / "s",
            "orin@10.3",
            model="tests.export.test_fp16:large",
            precision="fp32",
        )
    )
    assert plain.profiles[0].float_nodes == {}
    assert plain.profiles[0].kind == "Q/DQ pairs, FP32 types in the graph"


def test_narrow_weights_become_int4_where_that_exists(images, tmp_path):
    quantize(spec(images, tmp_path / "q", model="trtq.testing.models:tiny_vit", bits="w4a8"))
    record = export_profiles(
        wanted(images, tmp_path / "q", tmp_path / "p", "xavier@8.5", "t4@10.16", "orin@10.3")
    )
    assert [p.opset for p in record.profiles] == [16, 20, 21]  # no INT4 before 10.1, none on Turing
    assert "INT4 weights" in record.profiles[2].kind
    assert all(p.scales_ulp == 0 for p in record.profiles)
    assert all(p.agreement == 100.0 for p in record.profiles)


@pytest.mark.alone
def test_pain_27_what_the_hardware_lacks_stops_within_a_second(images, vit_out, tmp_path):
    start = time.perf_counter()
    for target in ("nano", "tx2"):
        with pytest.raises(
            UsageError,
            match=r"Cannot export INT8 for .* no INT8 arithmetic. Add --fallback: the float "
            r"model for FP16",
        ):
            export_profiles(wanted(images, vit_out, tmp_path / "p", target))
        with pytest.raises(UsageError, match="has no INT8 arithmetic"):
            quantize(spec(images, tmp_path / "q", target=target))
    encodings = Encodings.load(vit_out / "encodings.safetensors")
    formats = {k: type(f)(bits=8, kind="fp8", axis=f.axis) for k, f in encodings.formats.items()}
    fp8 = Encodings(amax=encodings.amax, formats=formats, origin=encodings.origin)
    (tmp_path / "fp8").mkdir()
    fp8.save(tmp_path / "fp8/encodings.safetensors")
    with pytest.raises(
        UsageError,
        match=r"Cannot export FP8 for Jetson AGX Orin: .* no FP8 .*Allocate again without fp8",
    ):
        export_profiles(wanted(images, tmp_path / "fp8", tmp_path / "p", "orin"))
    assert time.perf_counter() - start < 1.0
    assert not (tmp_path / "p").exists()


def test_what_cannot_be_exported(images, vit_out, tmp_path):
    with pytest.raises(UsageError, match="trtq export needs --target"):
        export_profiles(wanted(images, vit_out, tmp_path / "p"))
    with pytest.raises(UsageError, match="is the folder of the encodings"):
        export_profiles(wanted(images, vit_out, vit_out, "orin"))
    with pytest.raises(EncodingsError, match="were made for another model"):
        export_profiles(
            wanted(images, vit_out, tmp_path / "p", "orin", model="trtq.testing.models:tiny_cnn")
        )
    quantize(
        QuantizeSpec.make(
            {
                "model": "trtq.testing.models:tiny_vit",
                "data": str(images),
                "out": f"{tmp_path}/q",
                "input_size": "3x32x32",
                "preset": "imagenet",
                "calib_images": 16,
                "method": ["integer-softmax"],
                "attention": "float",
                "preset_quant": "none",
                "calib_cache": f"{tmp_path}/c",
            }
        )
    )
    with pytest.raises(
        EncodingsError,
        match=r"its methods \(integer-softmax\) put ops into the graph that the model itself does "
        r"not have",
    ):
        export_profiles(wanted(images, tmp_path / "q", tmp_path / "p", "orin"))


def test_on_the_command_line(images, vit_out, tmp_path):
    done = run_cli(
        "export",
        "trtq.testing.models:tiny_vit",
        "--data",
        str(images),
        "--input-size",
        "3x32x32",
        "--preset",
        "imagenet",
        "--encodings",
        f"{vit_out}/encodings.safetensors",
        "--target",
        "xavier@8.5",
        "--target",
        "rtx4090",
        "--out",
        f"{tmp_path}/p",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("2 targets; scales equal to 0 ulp; 2 files without findings")
    assert lines[1].startswith("  xavier-8.5.onnx: opset 16, Q/DQ pairs, precision by flags")
    record = json.loads((tmp_path / "p/export.json").read_text())
    assert set(record["files"]) == {
        "xavier-8.5.onnx",
        "xavier-8.5.cache",
        "xavier-8.5.fp32.onnx",
        "rtx4090.onnx",
        "encodings.safetensors",
    }
    missing = run_cli("export", "trtq.testing.models:tiny_vit", "--target", "orin")
    assert "trtq export needs --encodings, --data, --out" in missing.stderr
