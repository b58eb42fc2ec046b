"""Measurements of an engine, and trtexec as a second measurement."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from tests.support.bench import QUICK
from trtq import BenchSpec, bench
from trtq.bench import harness
from trtq.bench.engine_workload import EngineWorkload
from trtq.bench.layers import read_onnx_profile, what_ate
from trtq.bench.record import LayerTime
from trtq.bench.trtexec_bench import Fed, second_opinion
from trtq.bench.trtexec_bench import command as trtexec_command
from trtq.bench.workload import open_workload
from trtq.engine.runner import EngineRunner
from trtq.testing.cuda import FakeCuda
from trtq.testing.tensorrt import write_fake_tensorrt
from trtq.testing.trtexec import write_fake_trtexec

# ---- engines -----------------------------------------------------------------------------------


@pytest.fixture
def runner(cnn_out, tmp_path, monkeypatch):
    """An engine of the stand-in for TensorRT, on host memory."""
    folder = write_fake_tensorrt(tmp_path / "fake", "10.3.0")
    monkeypatch.syspath_prepend(str(folder))
    sys.modules.pop("tensorrt", None)
    from trtq.testing.tensorrt import MAGIC

    head = json.dumps({"version": "10.3.0", "shapes": {}, "report": "{}"}).encode()
    plan = MAGIC + head + b"\n" + (cnn_out / "model.fp32.onnx").read_bytes()
    yield EngineRunner(plan, "tensorrt", device="cpu", label="engine e")
    sys.modules.pop("tensorrt", None)


def images(count):
    """The input of every workload."""
    return {"input": np.random.default_rng(0).standard_normal((count, 3, 32, 32), np.float32)}


def test_three_times_of_an_engine_are_three_figures(runner):
    cuda = FakeCuda()
    workload = EngineWorkload(runner, images(2), cuda=cuda)
    assert workload.settings.graph == "used"
    cuda.launch = lambda: workload.bound.launch(0)
    workload.call()
    gpu, enqueue = workload.split(20)
    assert gpu.shape == enqueue.shape == (20,)
    assert (gpu >= enqueue).mean() > 0.9  # events lie around the launch
    assert workload.answer()[0].shape == (2, 4)
    assert np.isfinite(workload.answer()[0]).all()


def test_a_graph_that_cannot_be_captured_is_said(runner):
    workload = EngineWorkload(
        runner, images(1), cuda=FakeCuda(refuses="operation not permitted when stream is capturing")
    )
    assert workload.settings.graph == "not used: operation not permitted when stream is capturing"
    workload.call()
    assert (
        EngineWorkload(runner, images(1), graph=False, cuda=FakeCuda()).settings.graph
        == "not used: not asked for"
    )


def test_answers_of_an_engine_are_those_of_its_model(runner, cnn_out):
    workload, plain = (
        EngineWorkload(runner, images(1), cuda=FakeCuda(refuses="x")),
        open_workload(cnn_out / "model.fp32.onnx"),
    )
    workload.call()
    plain.call()
    np.testing.assert_allclose(workload.answer()[0], plain.answer()[0], atol=1e-5)


def test_layers_of_an_engine(runner):
    times = EngineWorkload(runner, images(1), cuda=FakeCuda(refuses="x")).profile(4)
    assert "conv1/Conv" in times
    assert times["conv1/Conv"] == 2.0  # 0.5 ms, four times


def test_pain_12_an_enqueue_bound_engine_is_said(runner, cnn_out, monkeypatch, tmp_path):
    path = tmp_path / "e.engine"
    path.write_bytes(b"x")

    class Bound(EngineWorkload):
        def split(self, count):
            return np.full(count, 1_000_000), np.full(count, 900_000)

    monkeypatch.setattr(
        "trtq.bench.workload.open_workload",
        lambda *a, **k: Bound(runner, images(1), cuda=FakeCuda(refuses="x")),
    )
    monkeypatch.setattr(harness, "open_gpu", lambda device: (None, "a test"))
    made = bench(BenchSpec(file=(str(path),), **QUICK))
    row = made.rows[0]
    assert (row.gpu.median.value, row.enqueue.median.value) == (1.0, 0.9)
    assert any("enqueue-bound" in n for n in row.notes)
    assert row.e2e.median.value not in (1.0, 0.9)
    assert "clocks, power and throttling are not watched: a test" in made.notes


@pytest.mark.parametrize(
    ("version", "graph", "words"),
    [
        ((8, 5), True, {"--useCudaGraph", "--useSpinWait"}),
        ((10, 16), False, {"--useSpinWait"}),
        ((11, 0), True, {"--includeDataTransfers"}),
        ((11, 1), False, {"--includeDataTransfers", "--noCudaGraph"}),
    ],
)
def test_trtexec_is_told_everything(version, graph, words):
    line = trtexec_command("trtexec", version, Path("e.engine"), graph=graph)
    assert set(line[1:]) - {"--loadEngine=e.engine", "--warmUp=1000", "--duration=5"} == words


@pytest.mark.parametrize("version", ["v8502", "v100300", "v110000"])
def test_a_second_opinion(tmp_path, monkeypatch, version, record):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(write_fake_trtexec(tmp_path, version)))
    ours = msgspec.structs.replace(
        record[0].rows[0].e2e,
        median=msgspec.structs.replace(record[0].rows[0].e2e.median, value=1.6),
    )
    found = second_opinion(tmp_path / "e.engine", ours)
    assert (found.gpu_ms, found.latency_ms) == (2.0, 2.2)
    assert found.difference == pytest.approx(0.25)
    assert "--shapes" not in found.command
    assert (
        "--shapes=input:8x3x32x32"
        in second_opinion(
            tmp_path / "e.engine", ours, Fed(shapes={"input": (8, 3, 32, 32)})
        ).command
    )
    assert "--loadEngine=" in found.command


def test_no_second_opinion(tmp_path, monkeypatch, cnn_out):
    monkeypatch.setenv("TRTQ_TRTEXEC", str(tmp_path / "none"))
    monkeypatch.setenv("PATH", "/nowhere")
    row = bench(BenchSpec(file=(f"{cnn_out}/model.qdq.onnx",), trtexec=True, **QUICK)).rows[0]
    assert (
        row.unavailable["trtexec"]
        == "No second opinion: trtexec reads engines, this is an ONNX file [BENCH-010]"
    )


# ---- layers and verdicts -----------------------------------------------------------------------


def test_a_profile_leaves_the_first_runs_out():
    event = {
        "cat": "Node",
        "name": "conv1/Conv_kernel_time",
        "dur": 1000,
        "args": {"op_name": "Conv"},
    }
    events = [{**event, "dur": 9000}, event, event, {"cat": "Session", "name": "x", "dur": 5}]
    assert read_onnx_profile(events, 2, skip=1) == {"conv1/Conv": (1.0, "Conv")}


def test_one_interrupted_call_does_not_make_a_layer_slow():
    event = {"cat": "Node", "name": "a_kernel_time", "args": {"op_name": "Conv"}}
    events = [{**event, "dur": 1000 * ms} for ms in (1, 1, 90, 1, 1)]
    assert read_onnx_profile(events, 5, skip=0) == {"a": (1.0, "Conv")}
    # In a loop of two: four calls in two requests.
    assert read_onnx_profile(events[:4], 2, skip=0) == {"a": (2.0, "Conv")}
    # The first request of two is left out with both of its calls.
    assert read_onnx_profile(events[:4], 1, skip=1) == {"a": (91.0, "Conv")}


def test_a_loop_does_not_contain_the_time_of_its_body():
    def event(name: str, op: str, ts: int, dur: int) -> dict:
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "ts": ts,
            "dur": dur,
            "args": {"op_name": op},
        }

    events = [  # as ONNX Runtime writes them: the loop ends last
        event("before", "Conv", 0, 1000),
        event("inner", "MatMul", 1100, 400),
        event("inner", "MatMul", 1600, 400),
        event("loop", "Loop", 1000, 1100),
    ]
    assert read_onnx_profile(events, 1, skip=0) == {
        "before": (1.0, "Conv"),
        "inner": (0.8, "MatMul"),
        "loop": (0.3, "Loop"),
    }


def layer(module: str, ms: float) -> LayerTime:
    return LayerTime(name=f"{module}/Conv", module=module, kind="Conv", ms=ms, share=0.0)


def test_what_ate_the_gain_is_sorted_by_loss():
    found = what_ate(
        [layer("a", 1.0), layer("b", 1.0)], [layer("a", 0.5), layer("b", 1.5), layer("new", 3.0)]
    )
    assert [(r.module, r.ms) for r in found] == [("new", 3.0), ("b", 0.5)]
