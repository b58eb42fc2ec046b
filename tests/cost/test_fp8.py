"""FP8 and weight-only formats, which only some targets run."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.conftest import spec
from tests.support.costs import analysis
from tests.support.quantize import CNN, SMALL, VIT
from trtq import (
    AllocateSpec,
    BuildSpec,
    CostSpec,
    ExportSpec,
    allocate,
    build,
    cost,
    evaluate,
    export_profiles,
    quantize,
)
from trtq.errors import EngineError, UsageError
from trtq.export.codes import codes_of
from trtq.specs import EvaluateSpec

# ---- formats that are no integers of both operands ---------------------------------------------


def pinned(folder: Path, **options: str) -> str:
    """Rewrite an allocation so that single layers have the given width."""
    path = folder / "A.json"
    held = json.loads(path.read_text())
    for layer in held["layers"]:
        layer["option"] = options.get(layer["name"], layer["option"])
    path.write_text(json.dumps(held))
    return str(path)


@pytest.mark.parametrize("model", [CNN, VIT])
def test_a_model_of_fp8_alone(model, images, tmp_path):
    record = analysis(images, tmp_path, model=model, bits=["fp8"])
    allocate(
        AllocateSpec(
            analysis=str(tmp_path / "S.json"),
            out=str(tmp_path / "A.json"),
            budget=("size=0.9",),
            bits=("fp8",),
        )
    )
    done = quantize(spec(images, tmp_path / "o", model=model, allocation=str(tmp_path / "A.json")))
    assert done.parity.passed
    assert sum(q.format == "fp8" for q in done.quantizers) >= 2 * len(record.layers)
    assert cost(
        CostSpec(model=str(tmp_path / "o/model.qdq.onnx"), device="rtx4090")
    ).latency.precisions["fp8"] >= len(record.layers)
    old = cost(CostSpec(model=str(tmp_path / "o/model.qdq.onnx"), device="xavier")).latency
    assert (
        "the Jetson AGX Xavier has no FP8 kernels: such layers are predicted in FP16" in old.notes
    )


@pytest.fixture(scope="module")
def mixed(images, tmp_path_factory) -> Path:
    """A model with FP8 layers, one with a weight of its own, INT8 and float."""
    folder = tmp_path_factory.mktemp("mixed")
    record = analysis(images, folder, bits=["8", "fp8", "w4a16", "fp16"])
    names = [layer.name for layer in record.layers]
    allocate(
        AllocateSpec(
            analysis=str(folder / "S.json"), out=str(folder / "A.json"), budget=("size=0.6",)
        )
    )
    made = pinned(folder, **dict(zip(names, ["w8a8", "fp8", "w4a16", "fp16"], strict=False)))
    quantize(spec(images, folder / "o", allocation=made))
    return folder


def test_fp8_and_weights_alone_in_one_model(mixed: Path, images):
    record = json.loads((mixed / "o/quantize.json").read_text())
    assert record["parity"]["passed"]
    names = [layer["name"] for layer in json.loads((mixed / "A.json").read_text())["layers"]]
    formats = {(q["layer"], q["role"]): q for q in record["quantizers"]}
    assert formats[names[1], "weight"]["format"] == formats[names[1], "input"]["format"] == "fp8"
    assert formats[names[1], "input"]["computes_in"].startswith("FP8")
    assert formats[names[2], "weight"]["format"] == "int4"
    assert (names[2], "input") not in formats
    assert formats[names[2], "weight"]["computes_in"].startswith("float")
    left = {q["name"]: q["reason"] for q in record["left_in_float"]}
    assert left[f"{names[2]}.input"] == "the allocation quantizes the weight alone"
    model = onnx.load(mixed / "o/model.qdq.onnx")
    types = {t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.FLOAT8E4M3FN in types
    scored = evaluate(
        EvaluateSpec(
            onnx=str(mixed / "o/model.qdq.onnx"),
            reference=str(mixed / "o/model.fp32.onnx"),
            data=str(images),
            input_size=SMALL,
            preset="imagenet",
        )
    )
    assert scored.agreement > 90


def test_fp8_is_exported_for_what_has_it(mixed: Path, images, tmp_path):
    given = json.loads((mixed / "o/quantize.json").read_text())["spec"]
    record = export_profiles(
        ExportSpec(
            model=given["model"],
            data=str(images),
            input_size=(3, 32, 32),
            preset="imagenet",
            encodings=f"{mixed}/o/encodings.safetensors",
            target=("rtx4090", "thor@10.13"),
            out=str(tmp_path),
        )
    )
    assert [p.agreement for p in record.profiles] == [100.0, 100.0]
    assert codes_of(onnx.load(tmp_path / "thor-10.13.onnx")) == "FP8, INT4, INT8"


def test_the_analysis_sees_fp8_between_int8_and_int4(images, tmp_path):
    record = analysis(images, tmp_path, bits=["4", "8", "fp8", "w8a16"])
    total = {o: sum(layer.loss[o] for layer in record.layers) for o in record.bits}
    assert total["w8a8"] < total["fp8"] < total["w4a4"]
    assert total["w8a16"] < total["fp8"]


def test_fp8_builds_for_ada_and_is_refused_elsewhere(mixed: Path, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    path = str(mixed / "o/model.qdq.onnx")
    made = build(BuildSpec(onnx=path, target="rtx4090", out=str(tmp_path / "a.engine")))
    assert made.engine_bytes > 0
    with pytest.raises(
        EngineError,
        match=r"Cannot build FP8 for GeForce RTX 3080: compute capability 8.6 has no FP8",
    ):
        build(BuildSpec(onnx=path, target="rtx3080", out=str(tmp_path / "b.engine")))


def test_targets_refuse_formats_they_have_no_kernels_for(images, tmp_path, mixed: Path):
    found = str(mixed / "S.json")
    out = str(tmp_path / "A.json")
    with pytest.raises(
        UsageError,
        match=r"Cannot run fp8 for Jetson AGX Orin: compute capability 8.7 has no FP8 arithmetic",
    ):
        allocate(AllocateSpec(analysis=found, out=out, budget=("size=0.5",), target="orin"))
    with pytest.raises(UsageError, match=r"Cannot run w8a8 for Jetson Nano: .*5.3 has no INT8"):
        allocate(
            AllocateSpec(
                analysis=found, out=out, budget=("size=0.9",), bits=("8", "fp16"), target="nano"
            )
        )
    done = allocate(
        AllocateSpec(
            analysis=found, out=out, budget=("size=0.9",), bits=("8", "fp16"), target="orin"
        )
    )
    assert done.layers
    with pytest.raises(
        UsageError,
        match=r"Cannot write FP8: ONNX has it from opset 19 on, asked for 17. Give --opset 19",
    ):
        quantize(spec(images, tmp_path / "o", allocation=str(mixed / "A.json"), opset=17))
