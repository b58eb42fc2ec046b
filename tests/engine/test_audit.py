"""Audit: the precision every module asked for against the one it got.

The reports are of every generation and of a real plan.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import run_cli, spec
from trtq import AuditSpec, BuildSpec, audit, build, quantize
from trtq.engine.audit import classify, read_layer_info
from trtq.engine.plan_text import audit_plan
from trtq.errors import EngineError

LONG = "Thirty-two wide channel vectorized row major Int8 format"
NODES = ("stem/Conv", "conv1/Conv", "depthwise/Conv", "pointwise/Conv", "head/MatMul")


def layer(name: str, kind: str, weights: str, **more) -> dict[str, object]:
    return {
        "Name": name,
        "LayerType": "CaskConvolution",
        "Inputs": [{"Name": "i", "Dimensions": [1], "Format/Datatype": kind}],
        "Weights": {"Type": weights, "Count": 1},
        **more,
    }


def old_report() -> dict[str, object]:
    """As 8.x writes it: long texts, fused names."""
    return {
        "Layers": [
            {
                "Name": "Reformatting CopyNode for Input Tensor 0 to stem/Conv + relu/Relu",
                "LayerType": "Reformat",
                "Inputs": [],
            },
            layer("stem/Conv + relu/Relu", LONG, "Int8"),
            layer("conv1/Conv + add/Add + relu_1/Relu", LONG, "Int8"),
            layer("depthwise/Conv + PWN(relu6/Clip)", "Row major linear FP32", "FP32"),
            layer("pointwise/Conv + relu_2/Relu", LONG, "Int8"),
            layer("head/MatMul", "Channel major FP16 format where channel % 8 == 0", "Half"),
        ],
        "Bindings": ["input", "output"],
    }


def new_report() -> dict[str, object]:
    """As 11 writes it: short texts, type and format apart, names in the metadata."""
    rows = []
    for i, node in enumerate(NODES):
        kind = "Half" if node.startswith("head") else "Int8"
        rows.append(
            {
                "Name": f"__mye{i}_myl0_{i}",
                "LayerType": "gemm",
                "Inputs": [{"Name": "i", "Datatype": kind, "Format": "Row major"}],
                "Metadata": f"[ONNX Layer: {node}]\x1e[ONNX Layer: other]",
            }
        )
    return {"Layers": rows, "I/O Tensors": [{"Name": "input", "IOMode": "Input"}]}


def asked(report: object, cnn_out: Path, tmp_path: Path, **more) -> AuditSpec:
    path = tmp_path / "layers.json"
    path.write_text(json.dumps(report))
    return AuditSpec(file=str(path), onnx=f"{cnn_out}/model.qdq.onnx", **more)


def test_type_texts():
    for text, wanted in (
        (LONG, "int8"),
        ("Int8", "int8"),
        ("FP8", "fp8"),
        ("BFloat16", "bf16"),
        ("Half", "fp16"),
        ("Float16", "fp16"),
        ("Two wide channel vectorized row major FP16 format", "fp16"),
        ("Float", "fp32"),
        ("Row major linear FP32", "fp32"),
        ("Bool", "unknown"),
    ):
        assert classify(text) == wanted


def test_a_report_of_8(cnn_out: Path, tmp_path: Path):
    record = audit(asked(old_report(), cnn_out, tmp_path))
    got = {m.node: m.actual for m in record.modules}
    assert got == {
        "stem/Conv": "int8",
        "conv1/Conv": "int8",
        "depthwise/Conv": "fp32",
        "pointwise/Conv": "int8",
        "head/MatMul": "fp16",
    }
    assert [m.node for m in record.modules if m.short] == ["depthwise/Conv", "head/MatMul"]
    assert not record.passed
    assert record.moving == 1
    assert sum(record.shares.values()) == pytest.approx(100.0, abs=0.1)
    assert record.shares["int8"] > record.shares["fp32"]
    assert record.summary.startswith("3 of 5 modules compute in what was asked for")


def test_a_report_of_11(cnn_out: Path, tmp_path: Path):
    record = audit(asked(new_report(), cnn_out, tmp_path))
    assert [m.actual for m in record.modules] == ["int8"] * 4 + ["fp16"]


def middle_report(streams: bool) -> dict[str, object]:
    """Return a report as 10.3 and 10.13 write it.

    It has short texts in one field, the ONNX names in the metadata, and kernels of Myelin with
    names of their own.
    """
    rows = []
    for i, node in enumerate(NODES):
        kind = {"depthwise/Conv": "Float", "head/MatMul": "Half"}.get(node, "Int8")
        more = {"StreamId": 0} if streams else {}
        rows.append(
            layer(
                f"__myl_{i}" if streams else f"{node} + fused",
                kind,
                kind,
                Metadata=f"[ONNX Layer: {node}]",
                **more,
            )
        )
    return {
        "Layers": [{"Name": "Reformatting CopyNode", "LayerType": "Reformat", "Inputs": []}, *rows],
        "Bindings": ["input", "output"],
    }


def eleven() -> dict[str, object]:
    report = new_report()
    for row, node in zip(report["Layers"], NODES, strict=True):
        row["Inputs"][0]["Datatype"] = {"depthwise/Conv": "Float", "head/MatMul": "Half"}.get(
            node, "Int8"
        )
    return report


def test_pain_6_every_release_gives_the_same_coverage_for_the_same_graph(
    cnn_out: Path, tmp_path: Path
):
    reports = {
        "8.5": old_report(),
        "10.3": middle_report(False),
        "10.13": middle_report(True),
        "11": eleven(),
    }
    got = {v: audit(asked(r, cnn_out, tmp_path)) for v, r in reports.items()}
    assert len({tuple((m.node, m.actual) for m in r.modules) for r in got.values()}) == 1
    assert len({tuple(r.shares.items()) for r in got.values()}) == 1
    unknown = middle_report(True)
    unknown["Layers"].append(
        {
            "Name": "x",
            "LayerType": "NewInTwelve",
            "Inputs": [{"Format/Datatype": "Q3"}],
            "Field": {"a": 1},
        }
    )
    record = audit(asked(unknown, cnn_out, tmp_path))  # kept and counted, never fatal
    assert record.layers == 7
    assert record.shares == got["10.13"].shares


@pytest.mark.parametrize("kind", ["Row major linear FP32", "Half"])
def test_pain_6_a_build_whose_report_has_no_int8_layer_fails(
    kind, images: Path, tmp_path: Path, monkeypatch
):
    """Pain 4, too: exit code 0 and an FP32 engine called INT8 is what must not be."""
    import onnx

    from trtq.testing.trtexec import write_fake_trtexec

    quantize(spec(images, tmp_path / "q", opset=13))
    report = tmp_path / "layers.json"
    report.write_text(json.dumps({"Layers": [layer(f"{n} + fused", kind, kind) for n in NODES]}))
    model = onnx.load(tmp_path / "q/model.qdq.onnx")
    model.doc_string = f"layers:{report}"
    onnx.save(model, tmp_path / "m.onnx")
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, "v100300")))
    wanted = BuildSpec(
        onnx=f"{tmp_path}/m.onnx", target="orin", backend="trtexec", out=f"{tmp_path}/e.engine"
    )
    with pytest.raises(
        EngineError,
        match=r"Orin has no layer in INT8: the model has .* and 5 quantized layers; the first",
    ):
        build(wanted)
    assert not (tmp_path / "e.engine").exists()
    report.write_text(json.dumps(old_report()))
    made = build(wanted)
    assert (made.coverage.asked, made.coverage.got, [m.node for m in made.coverage.short]) == (
        5,
        3,
        ["depthwise/Conv", "head/MatMul"],
    )
    assert "3 of 5 quantized layers in INT8" in made.summary


def test_names_are_matched_whole_and_regions_are_unknown_inside(cnn_out: Path, tmp_path: Path):
    report = {
        "Layers": [
            layer("block.conv1/Conv", LONG, "Int8"),
            layer("{ForeignNode[depthwise/Conv...output]}", "Row major linear FP32", ""),
            layer("stem/Conv.1", LONG, "Int8"),
        ]
    }
    got = {m.node: m.actual for m in audit(asked(report, cnn_out, tmp_path)).modules}
    assert got["conv1/Conv"] is None
    assert got["stem/Conv"] is None
    region = {
        "Layers": [
            layer("{ForeignNode[depthwise/Conv...head/MatMul]}", "Row major linear FP32", "")
        ]
    }
    inside = audit(asked(region, cnn_out, tmp_path))
    assert {m.node: m.actual for m in inside.modules}["pointwise/Conv"] == "unknown"
    assert inside.passed  # what cannot be known is no shortfall, and is said
    assert "of 5 it cannot be told" in inside.summary


def test_names_alone(cnn_out: Path, tmp_path: Path):
    record = audit(asked({"Layers": [f"{n} + x" for n in NODES]}, cnn_out, tmp_path))
    assert {m.actual for m in record.modules} == {"unknown"}
    assert any("--profilingVerbosity=detailed" in n for n in record.notes)


def test_the_likely_rule_is_named(tmp_path: Path):
    import onnx

    from tests.support.lint_graphs import plain

    onnx.save(plain(axis=1), tmp_path / "m.onnx")
    (tmp_path / "l.json").write_text(
        json.dumps({"Layers": [layer("c", "Row major linear FP32", "FP32")]})
    )
    record = audit(
        AuditSpec(file=str(tmp_path / "l.json"), onnx=str(tmp_path / "m.onnx"), target="rtx3080")
    )
    assert record.modules[0].short
    assert record.modules[0].why.startswith("L05: its weight has scales along axis 1")


def test_what_is_no_report(cnn_out: Path, tmp_path: Path):
    with pytest.raises(
        EngineError, match='is no layer report of TensorRT: it has no list called "Layers"'
    ):
        audit(asked([1], cnn_out, tmp_path))
    (tmp_path / "torn.json").write_text("{")
    with pytest.raises(EngineError, match="Cannot read the layer report"):
        read_layer_info(tmp_path / "torn.json")
    with pytest.raises(EngineError, match="there is no such file"):
        audit(AuditSpec(file=f"{tmp_path}/none.engine", onnx=f"{cnn_out}/model.qdq.onnx"))


def test_a_real_plan(cnn_out: Path, images: Path, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    build(BuildSpec(onnx=f"{cnn_out}/model.qdq.onnx", target="rtx3080", out=f"{tmp_path}/e.engine"))
    record = audit(AuditSpec(file=f"{tmp_path}/e.engine", onnx=f"{cnn_out}/model.qdq.onnx"))
    convs = {m.node: m.actual for m in record.modules if m.node.endswith("/Conv")}
    assert set(convs.values()) == {"int8"}
    assert record.passed
    assert "TensorRT-RTX" in record.source
    other = tmp_path / "other"
    quantize(spec(images, other, bits="w4a8"))
    with pytest.raises(EngineError, match="was not built from .*other/model.qdq.onnx"):
        audit(AuditSpec(file=f"{tmp_path}/e.engine", onnx=f"{other}/model.qdq.onnx"))
    done = run_cli("audit", f"{tmp_path}/e.engine", "--onnx", f"{cnn_out}/model.qdq.onnx")
    assert done.returncode == 0, done.stderr
    assert "modules compute in what was asked for" in done.stdout


def test_rows_of_a_plan_whose_names_have_quotes_and_braces():
    """A file called its output by the JSON text of its classes."""
    name = rb'"{\"1\": \"one minute\", \"2\": \"two\"}.1"'
    plan = (
        b"\0tensor={ dims={ 1 7 } name=" + name + b" strides={ 7 1 } type=int8 }\n"
        b'tensor={ dims={ 1 7 } name="o" strides={ 7 1 } type=float }\n'
        b'  fully_connected={ name="g" output={"o"} input={' + name + b"} }\n"
        b'tensor={ dims={ 1 } name="p" type=float }\n\0'
    )
    found = audit_plan(plan, "1.7.1")
    assert found is not None
    assert found.products == {"int8": 1}
