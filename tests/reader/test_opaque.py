"""Nodes that ONNX Runtime computes, and what is made of them."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import trtq
from tests.reader.test_files import assert_round_trip, image_model, written
from tests.support.onnx_files import random_weight
from trtq.errors import ModelError
from trtq.graph.opaque import use_library
from trtq.reader import read_onnx


def _with_det(size=4):
    """A convolution, then the determinant of each channel, which no row reads."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[1, 1]),
        helper.make_node("Det", ["c"], ["y"], name="det"),
    ]
    return image_model(nodes, {"w": random_weight(4, 3, 1, 1)}, size=size)


def test_a_node_without_a_row_is_computed_and_written_back(tmp_path):
    loaded, made = written(tmp_path, _with_det())
    assert [n.op_type for n in made.graph.node] == ["Conv", "Det"]
    assert [n.name for n in made.graph.node] == ["conv", "det"]
    assert loaded.graph.signature.outputs[0].shape == ("batch", 4)
    assert_round_trip(_with_det(), loaded, made)


def test_it_has_no_gradient_and_says_so():
    module = read_onnx(_with_det())
    answer = module(torch.randn(2, 3, 4, 4))["y"]
    with pytest.raises(ModelError, match=r"det \(Det\) has no gradient"):
        answer.sum().backward()


def test_a_layer_in_front_of_it_is_quantized(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(_with_det(), path)
    samples = [torch.randn(3, 4, 4) for _ in range(4)]
    quantized = trtq.quantize(str(path), samples, min_agreement=0.0, parity_images=2)
    assert "conv.input" in quantized.encodings.amax
    kinds = [n.op_type for n in quantized.done.qdq.graph.node]
    assert kinds.count("Det") == 1
    assert kinds.count("QuantizeLinear") == 2


def test_a_recurrent_layer_over_an_open_length_is_kept_whole(tmp_path):
    nodes = [helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="rnn", hidden_size=5)]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["length", "batch", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [
            onnx.numpy_helper.from_array(random_weight(1, 20, 6), "w"),
            onnx.numpy_helper.from_array(random_weight(1, 20, 5), "r"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    loaded, made = written(tmp_path, model)
    assert [n.op_type for n in made.graph.node] == ["LSTM"]
    assert_round_trip(model, loaded, made)


def test_a_branch_that_the_data_choose_is_kept_whole(tmp_path):
    def branch(op, made):
        return helper.make_graph(
            [helper.make_node(op, ["x"], [made], name=op)],
            op,
            [],
            [helper.make_tensor_value_info(made, TensorProto.FLOAT, ["batch", 3, 4, 4])],
        )

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], name="sum", keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"], name="above"),
        helper.make_node(
            "If",
            ["c"],
            ["y"],
            name="choice",
            then_branch=branch("Relu", "t"),
            else_branch=branch("Neg", "e"),
        ),
    ]
    model = image_model(nodes, {"zero": np.float32(0)}, size=4)
    loaded, made = written(tmp_path, model)
    assert [n.op_type for n in made.graph.node] == ["ReduceSum", "Greater", "If"]
    assert_round_trip(model, loaded, made)


def test_a_library_of_ops_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="there is no such file"):
        use_library(tmp_path / "ops.so")
