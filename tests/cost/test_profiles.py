"""Measured profiles: the plan's own kernels, names of trtexec, and what they correct."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest

from tests.conftest import run_cli
from tests.support.costs import analysis
from trtq import AllocateSpec, BuildSpec, CostSpec, allocate, build, cost
from trtq.cost.devices import find_device
from trtq.cost.onnx_file import list_onnx_ops
from trtq.cost.ops import Kernel
from trtq.cost.profile import correct
from trtq.cost.roofline import predict
from trtq.engine.plan_kernels import read_plan_kernels
from trtq.errors import ArtifactError, UsageError
from trtq.quant.formats import BitConfig


def test_the_plan_s_own_kernels(cnn_out: Path, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    engine = tmp_path / "m.engine"
    built = build(
        BuildSpec(onnx=str(cnn_out / "model.qdq.onnx"), target="rtx3080", out=str(engine))
    )
    done = run_cli(
        "cost",
        str(cnn_out / "model.qdq.onnx"),
        "--device",
        "rtx3080",
        "--engine",
        str(engine),
        "--json",
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["engine"]["ms"] > 0
    assert record["latency"]["ms"] > 0
    kernels = read_plan_kernels(engine.read_bytes(), str(built.builder.version), 1)
    assert kernels is not None
    convs = [k for k in kernels if k.kind == "conv"]
    assert {k.precision for k in convs} == {"int8"}
    graph = [
        o for o in list_onnx_ops(onnx.load(cnn_out / "model.qdq.onnx"), "m") if o.kind == "conv"
    ]
    # The engine pads channels to its vectors, so it multiplies at least what the graph says.
    assert len(convs) == len(graph)
    assert sum(k.macs for k in convs) >= sum(o.macs for o in graph)
    assert sum(k.macs for k in read_plan_kernels(engine.read_bytes(), "1.7.1", 4) or []) == 4 * sum(
        k.macs for k in kernels
    )
    assert read_plan_kernels(engine.read_bytes(), "9.9", 1) is None
    assert read_plan_kernels(b"nothing", "1.7.1", 1) is None
    manifest = tmp_path / "m.engine.json"
    manifest.write_text(
        manifest.read_text()
        .replace('"version": "1.7', '"version": "3.7')
        .replace('"version":"1.7', '"version":"3.7')
    )
    with pytest.raises(ArtifactError, match="only plans of TensorRT-RTX 1.7 say what they hold"):
        cost(CostSpec(model=str(cnn_out / "model.qdq.onnx"), device="rtx3080", engine=str(engine)))


def test_a_profile_as_trtexec_writes_names(tmp_path):
    """It escapes nothing; a file that was cut off is none."""
    path = tmp_path / "p.json"
    odd = (
        '[\n  { "count" : 7 }\n, { "name" : "a"b\\c", "timeMs" : 50, "averageMs" : 0.5, '
        '"medianMs" : 0.4, "percentage" : 75.5 }\n]'
    )
    times = [
        predict(
            Kernel(name="k", kind="conv", macs=1000, weights=10, reads=10, writes=10),
            find_device("t4"),
            BitConfig(8, 8),
            batch=1,
        )
    ]
    path.write_text(odd)
    found = correct(path, times)
    assert (found.iterations, found.measured_ms) == (7, 0.5)
    with pytest.raises(UsageError, match="the profile has 1 layers, the model has no kernels"):
        correct(path, [])
    path.write_text(odd[:-4])
    with pytest.raises(
        ArtifactError,
        match=r"is no layer profile: expected what trtexec --exportProfile writes "
        r"\(.*malformed.*\)",
    ):
        correct(path, times)


def test_a_measured_profile_corrects_the_prediction(images, tmp_path, cnn_out: Path):
    plain = cost(CostSpec(model=str(cnn_out / "model.qdq.onnx"), device="xavier")).latency
    assert plain is not None
    first, second = plain.kernels[:2]
    rows = [
        {"count": 500},
        {
            "name": f"{first.name}/Conv + relu/Relu",
            "timeMs": 100.0,
            "averageMs": 3 * first.ms,
            "percentage": 50.0,
        },
        {
            "name": f"[ONNX Layer: {second.name}/Conv]",
            "timeMs": 50.0,
            "averageMs": 3 * (plain.ms - first.ms),
            "percentage": 50.0,
        },
    ]
    profile = tmp_path / "p.json"
    profile.write_text(json.dumps(rows))
    found = cost(
        CostSpec(model=str(cnn_out / "model.qdq.onnx"), device="xavier", profile=str(profile))
    )
    assert found.latency is not None
    assert found.latency.correction is not None
    assert found.latency.correction.factor == pytest.approx(3.0)
    assert [m.kernels for m in found.latency.correction.matched] == [[first.name], [second.name]]
    assert found.latency.correction.unmatched == len(plain.kernels) - 2
    assert "3.00 times the prediction (--correct xavier=3.000)" in found.summary
    for text, error in (
        ("{}", "is no layer profile"),
        ('[{"count": 1}]', "averageMs"),
        ('[{"name": "a", "averageMs": 1}]', "no layer profile"),
    ):
        profile.write_text(text)
        with pytest.raises(ArtifactError, match=error):
            cost(
                CostSpec(
                    model=str(cnn_out / "model.qdq.onnx"), device="xavier", profile=str(profile)
                )
            )
    with pytest.raises(UsageError, match="--profile needs --device"):
        cost(CostSpec(model=str(cnn_out / "model.qdq.onnx"), profile=str(profile)))
    analysis(images, tmp_path, bits=["8", "fp16"])
    values = {
        "analysis": str(tmp_path / "S.json"),
        "out": str(tmp_path / "A.json"),
        "budget": ("latency@xavier=1s",),
    }
    once, thrice = (
        allocate(AllocateSpec(**values)),
        allocate(AllocateSpec(**values, correct=("xavier=3",))),
    )
    assert thrice.costs["latency@xavier"] == pytest.approx(3 * once.costs["latency@xavier"])
    with pytest.raises(
        UsageError, match="Cannot read --correct 'xavier=fast': expected DEVICE=FACTOR"
    ):
        allocate(AllocateSpec(**values, correct=("xavier=fast",)))


# ---- latency budgets ---------------------------------------------------------------------------


def test_a_latency_budget_keeps_layers_in_float_only_where_it_allows(images, tmp_path):
    analysis(images, tmp_path, bits=["8", "fp16"])
    found = str(tmp_path / "S.json")
    loose = allocate(
        AllocateSpec(analysis=found, out=str(tmp_path / "A.json"), budget=("latency@xavier=1s",))
    )
    assert {layer.option for layer in loose.layers} == {"fp16"}
    tight = allocate(
        AllocateSpec(
            analysis=found, out=str(tmp_path / "A.json"), budget=("latency@xavier=1s", "size=0.27")
        )
    )
    assert "w8a8" in {layer.option for layer in tight.layers}
    assert tight.costs["latency@xavier"] <= loose.costs["latency@xavier"]
    assert loose.costs["latency@xavier"] < loose.full["latency@xavier"]
    with pytest.raises(UsageError, match=r"The budget latency@xavier cannot be met.*ms"):
        allocate(
            AllocateSpec(
                analysis=found, out=str(tmp_path / "A.json"), budget=("latency@xavier=10us",)
            )
        )
    with pytest.raises(UsageError, match="Unknown device 'xavjer'"):
        allocate(
            AllocateSpec(
                analysis=found, out=str(tmp_path / "A.json"), budget=("latency@xavjer=1ms",)
            )
        )
