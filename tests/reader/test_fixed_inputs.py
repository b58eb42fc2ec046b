"""Inputs of ONNX files: those that become constants, and states that do not fit."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import trtq
from tests.support import onnx_files
from tests.support.onnx_files import random_weight
from trtq.errors import UsageError
from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.reader import read_onnx

FLOAT = TensorProto.FLOAT
model_of = functools.partial(onnx_files.model_of, opset=17, check=False)


def rated(rate_shape=()):
    """A model whose second input, a number, chooses between two products."""

    def branch(factor):
        nodes = [
            helper.make_node(
                "Constant", [], ["f"], value=numpy_helper.from_array(np.float32(factor))
            ),
            helper.make_node("Mul", ["h", "f"], [f"by_{factor}"]),
        ]
        output = helper.make_tensor_value_info(f"by_{factor}", FLOAT, None)
        return helper.make_graph(nodes, f"by_{factor}", [], [output])

    fast = numpy_helper.from_array(np.full(rate_shape, 16000, np.int64))
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], name="stem", kernel_shape=[3, 3]),
        helper.make_node("Constant", [], ["fast"], value=fast),
        helper.make_node("Equal", ["sr", "fast"], ["is_fast"]),
        helper.make_node("If", ["is_fast"], ["y"], then_branch=branch(2), else_branch=branch(3)),
    ]
    inputs = [("x", FLOAT, ["batch", 3, 8, 8]), ("sr", TensorProto.INT64, list(rate_shape))]
    weights = {"w": random_weight(4, 3, 3, 3)}
    return model_of(nodes, inputs, [("y", FLOAT, None)], weights)


@pytest.mark.parametrize("shape", [(), (1,)])
def test_an_input_that_chooses_a_branch_becomes_a_constant(tmp_path, shape):
    path = tmp_path / "rated.onnx"
    onnx.save(rated(shape), path)
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    for rate in (16000, 8000):
        loaded = trtq.load(str(path), model_arg={"sr": rate}, input_size=(3, 8, 8))
        assert [t.name for t in loaded.graph.signature.inputs] == ["x"]
        assert f"the input sr is the constant {rate} (--model-arg)" in loaded.notes
        made = open_session(export_onnx(loaded.graph.module, opset=17))
        (answer,) = made.run(None, {"x": images})
        sr = np.full(shape, rate, np.int64)
        (wanted,) = open_session(rated(shape)).run(None, {"x": images, "sr": sr})
        np.testing.assert_allclose(answer, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"rate": 1}, "it has no input rate, but x, sr"),
        ({"sr": "fast"}, "'fast' is no int64. Give a number that the input can hold"),
        ({"sr": 0.5}, "0.5 is no int64"),
        ({"x": 1}, "the input x has open axes, and a constant has none"),
    ],
)
def test_a_constant_that_does_not_fit_an_input_is_refused(tmp_path, values, text):
    onnx.save(rated(), tmp_path / "rated.onnx")
    with pytest.raises(UsageError, match=text):
        trtq.load(str(tmp_path / "rated.onnx"), model_arg=values)


def test_the_only_input_is_no_constant(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    onnx.save(
        model_of(nodes, [("x", FLOAT, [1, 4])], [("y", FLOAT, None)], {}), tmp_path / "m.onnx"
    )
    with pytest.raises(UsageError, match="x is its only input. Leave it out"):
        trtq.load(str(tmp_path / "m.onnx"), model_arg={"x": 1})


def test_a_state_of_another_batch_is_no_read_beyond_its_end(tmp_path):
    """torch's function of a recurrent layer reads memory that is not the state's."""
    nodes = [helper.make_node("LSTM", ["x", "w", "r", "", "", "h", "c"], ["y"], hidden_size=5)]
    inputs = [
        *(("x", FLOAT, [7, "batch", 3]), ("h", FLOAT, [1, 1, 5]), ("c", FLOAT, [1, 1, 5])),
    ]
    weights = {"w": random_weight(1, 20, 3), "r": random_weight(1, 20, 5)}
    model = model_of(nodes, inputs, [("y", FLOAT, None)], weights)
    onnx.save(model, tmp_path / "m.onnx")
    module = read_onnx(tmp_path / "m.onnx")
    x, state = torch.rand(7, 2, 3), torch.rand(1, 1, 5)
    with pytest.raises(
        ValueError, match=r"state 0 of LSTM .* is \[1, 1, 5\], expected \[1, 2, 5\]"
    ):
        module(x, state, state)
    (wanted,) = open_session(model).run(
        None, {"x": x[:, :1].numpy(), "h": state.numpy(), "c": state.numpy()}
    )
    answer = module(x[:, :1], state, state)
    np.testing.assert_allclose(answer["y"].detach(), wanted, atol=1e-6)
