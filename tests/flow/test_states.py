"""Streaming models: a state whose samples are its second axis."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnxruntime import InferenceSession

import trtq
from tests.conftest import run_cli
from tests.support.onnx_files import model_of, random_weight
from trtq.data.sample_axes import sample_axes

FLOAT = TensorProto.FLOAT


def streaming(batch: int | str = "batch") -> onnx.ModelProto:
    """A cell of three layers: a state [3, batch, 6] goes in and comes out, beside a number."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "inner"),
        helper.make_node("Mul", ["y", "gain"], ["louder"], "mul"),
        helper.make_node("Add", ["louder", "state"], ["z"], "add"),
        helper.make_node("Tanh", ["z"], ["next"], "tanh"),
        helper.make_node("MatMul", ["next", "v"], ["both"], "head"),
        helper.make_node("ReduceMean", ["both", "layers"], ["score"], "mean", keepdims=0),
    ]
    weights = {
        "w": random_weight(8, 6),
        "v": random_weight(6, 3),
        "layers": np.array([0], np.int64),
    }
    return model_of(
        nodes,
        [("x", FLOAT, [batch, 8]), ("state", FLOAT, [3, batch, 6]), ("gain", FLOAT, [])],
        [("score", FLOAT, [batch, 3]), ("next", FLOAT, [3, batch, 6])],
        weights,
    )


@pytest.fixture(params=["batch", 1])
def stream(request, tmp_path):
    onnx.save(streaming(request.param), tmp_path / "stream.onnx")
    random = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    for i in range(6):
        arrays = {"x": random.standard_normal(8), "state": random.standard_normal((3, 6))}
        arrays["gain"] = np.array(0.5)
        np.savez(tmp_path / f"data/{i}.npz", **{n: a.astype(np.float32) for n, a in arrays.items()})
    return tmp_path


@pytest.mark.parametrize("data", ["random:6", "data"])
def test_states_are_samples_of_their_own_axis(stream, data, monkeypatch):
    monkeypatch.chdir(stream)
    asked = ("--calib-cache", "cache", "--calib-images", "6", "--parity-images", "6")
    result = run_cli("quantize", "stream.onnx", "--data", data, "--out", "out", *asked)
    assert result.returncode == 0, result.stderr
    assert "one at a time: axis 1 of state float32 [3, " in result.stderr
    assert "on 6 " in result.stdout
    scored = run_cli(
        *("evaluate", "out/model.qdq.onnx", "--reference", "stream.onnx", "--data", data)
    )
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout.startswith("6 ")


def test_what_is_computed_from_states_is_what_the_file_computes(stream):
    model = trtq.load(str(stream / "stream.onnx"))
    samples = trtq.samples(str(stream / "data"), model=model)
    batch = next(samples.batches(4))
    assert [list(t.shape) for t in batch.inputs.values()] == [[1, 8], [3, 1, 6], []]
    first = np.load(stream / "data/0.npz")
    assert np.array_equal(batch.inputs["state"][:, 0].numpy(), first["state"])


@pytest.mark.parametrize(
    ("shapes", "axes"),
    [
        ([("n", 8), (2, "n", 6), ()], [0, 1, 0]),
        ([(1, 8), (2, 1, 6)], [0, 1]),
        ([("n", 8), (1, "n", 6)], [0, 1]),
        ([("length", 8), (1, 1, 6)], [0, 0]),
        ([(4, 8), (4, 6)], [0, 0]),
        ([("n", 8), (5, 6)], [0, None]),
        ([("n", 8), (2, "m", 6)], [0, 1]),
    ],
)
def test_the_axis_of_the_samples(shapes, axes):
    assert sample_axes(shapes) == axes


def recurrent() -> onnx.ModelProto:
    """A GRU with an open batch and length, and a state of exactly one sample."""
    turned = {"perm": [1, 0, 2]}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["f"], "in"),
        helper.make_node("Transpose", ["f"], ["t"], "turn", **turned),
        helper.make_node("GRU", ["t", "g", "r", "", "", "h0"], ["y", "h1"], "gru", hidden_size=4),
        helper.make_node("Squeeze", ["y", "one"], ["s"], "squeeze"),
        helper.make_node("Transpose", ["s"], ["u"], "back", **turned),
        helper.make_node("MatMul", ["u", "v"], ["score"], "head"),
    ]
    weights = {
        "w": random_weight(6, 6),
        "g": random_weight(12, 6)[None],
        "r": random_weight(12, 4)[None],
        "v": random_weight(4, 3),
        "one": np.array([1], np.int64),
    }
    return model_of(
        nodes,
        [("x", FLOAT, ["batch", "time", 6]), ("h0", FLOAT, [1, 1, 4])],
        [("score", FLOAT, ["batch", "time", 3]), ("h1", FLOAT, [1, 1, 4])],
        weights,
    )


def test_a_state_of_one_sample_fixes_the_batch_and_leaves_the_length_open(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(recurrent(), "gru.onnx")
    samples = [
        {
            "x": np.random.default_rng(i).standard_normal((5 + i, 6)).astype(np.float32),
            "h0": np.zeros((1, 4), np.float32),
        }
        for i in range(6)
    ]
    (tmp_path / "data").mkdir()
    for i, sample in enumerate(samples):
        np.savez(tmp_path / f"data/{i}.npz", **sample)
    asked = ("--calib-cache", "cache", "--calib-images", "6", "--parity-images", "6")
    for data in ("data", "random:6"):
        result = run_cli("quantize", "gru.onnx", "--data", data, "--out", data[:4], *asked)
        assert result.returncode == 0, result.stderr
        assert "the model only captures with a fixed batch of 1: it fails on two" in result.stderr
    read = InferenceSession("gru.onnx").run(None, {n: a[None] for n, a in samples[3].items()})
    session = InferenceSession("data/model.fp32.onnx")
    assert session.get_inputs()[0].shape == [1, "time", 6]
    ours = session.run(None, {n: a[None] for n, a in samples[3].items()})
    for wanted, got in zip(read, ours, strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
