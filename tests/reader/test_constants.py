"""Constants of ONNX files: what is computed from them, and types that torch lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import trtq
from trtq.errors import ModelError

X = np.asarray([[1.5, -2.5, 0.5, 3.0]], dtype=np.float32)


def saved(path: Path, nodes, constants, *, opset: int = 17, shape=(1, 4)) -> Path:
    """Write a model of an input ``x`` [1, 4] and constants by name; return its path."""
    kept = [numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, list(shape))
    graph = helper.make_graph(nodes, "g", [x], [y], kept)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def by_runtime(path: Path) -> np.ndarray:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X})[0]


def by_trtq(path: Path) -> np.ndarray:
    return trtq.load(str(path)).graph.module(torch.from_numpy(X))[0].detach().numpy()


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax", "Hardmax"])
def test_a_softmax_of_constants_before_opset_13_runs_over_all_axes_from_one_on(op, axis, tmp_path):
    held = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    given = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node(op, ["c"], ["s"], **given),
        helper.make_node("Mul", ["x", "s"], ["y"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes, {"c": held}, opset=11, shape=(2, 3, 4))
    np.testing.assert_allclose(by_trtq(path), by_runtime(path), rtol=1e-5, atol=1e-6)


def test_the_normalisation_of_a_constant_covers_every_channel(tmp_path):
    held = np.random.default_rng(0).standard_normal((1, 3, 1, 4)).astype(np.float32) * 9
    nodes = [
        helper.make_node("LRN", ["c"], ["s"], size=3, alpha=0.5),
        helper.make_node("Mul", ["x", "s"], ["y"]),
    ]
    path = saved(tmp_path / "m.onnx", nodes, {"c": held}, shape=(1, 3, 1, 4))
    np.testing.assert_allclose(by_trtq(path), by_runtime(path), rtol=1e-5)


def from_table(values: np.ndarray):
    return [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["i"], to=TensorProto.INT64),
        helper.make_node("Gather", ["c", "i"], ["u"]),
        helper.make_node("Cast", ["u"], ["y"], to=TensorProto.FLOAT),
    ], {"c": values}


@pytest.mark.parametrize("kind", [np.uint16, np.uint32, np.uint64])
def test_unsigned_constants_are_read_as_int64(kind, tmp_path):
    path = saved(tmp_path / "m.onnx", *from_table(np.asarray([9, 60_000, 7, 3], dtype=kind)))
    loaded = trtq.load(str(path))
    note = f"the constants of the file that are {np.dtype(kind).name.upper()} are read as INT64: c"
    assert note in loaded.notes
    np.testing.assert_array_equal(by_trtq(path), by_runtime(path))


def test_unsigned_integers_that_torch_cannot_compute_with_are_refused(tmp_path):
    path = saved(tmp_path / "m.onnx", *from_table(np.asarray([2**63 + 5, 1, 2, 3], np.uint64)))
    why = "the constant 'c' has 9223372036854775813, which is too large for INT64. Export it with"
    with pytest.raises(ModelError, match=why):
        trtq.load(str(path))
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]),
        helper.make_node("Cast", ["a"], ["u"], to=TensorProto.UINT64, name="code"),
        helper.make_node("Cast", ["u"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(ModelError, match=r"code \(Cast\) makes UINT64, with which torch does not"):
        trtq.load(str(saved(tmp_path / "n.onnx", nodes, {})))
    nodes = [
        helper.make_node("Cast", ["c"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "f"], ["y"]),
    ]  # what depends on constants alone is computed by ONNX's evaluator, in every type
    path = saved(tmp_path / "o.onnx", nodes, {"c": np.asarray([2**63 + 5], np.uint64)})
    np.testing.assert_allclose(by_trtq(path), by_runtime(path))
