"""Nodes that ONNX Runtime computes, and what is made of them."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import trtq
from tests.reader.test_files import assert_round_trip, image_model, written
from tests.support import onnx_files
from tests.support.onnx_files import random_weight
from trtq.errors import CalibrationError, ModelError
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


@pytest.mark.parametrize("scales", ["", "none"])
def test_a_resize_by_computed_sizes_has_them_as_its_shape(tmp_path, scales):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[1, 1]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Slice", ["s", "zero", "two", "zero"], ["head"]),
        helper.make_node("Concat", ["head", "wanted"], ["sizes"], axis=0),
        helper.make_node(
            "Resize",
            ["c", scales, scales, "sizes"],
            ["r"],
            name="up",
            mode="linear",
            coordinate_transformation_mode="asymmetric",
        ),
        helper.make_node("Conv", ["r", "w2"], ["y"], name="conv2", kernel_shape=[1, 1]),
    ]
    weights = {
        "w": random_weight(4, 3, 1, 1),
        "w2": random_weight(2, 4, 1, 1),
        "zero": np.array([0]),
        "two": np.array([2]),
        "wanted": np.array([9, 7]),
        "none": np.zeros(0, np.float32),
    }
    model = image_model(nodes, weights, size=4)
    loaded, made = written(tmp_path, model)
    assert loaded.graph.signature.outputs[0].shape == ("batch", 2, 9, 7)
    assert [n.op_type for n in made.graph.node].count("Resize") == 1
    assert_round_trip(model, loaded, made)


def test_an_axis_that_only_the_data_decide_is_squeezed(tmp_path):
    """The first place of a value above 0: as many places as there are, cut to one."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Transpose", ["places"], ["rows"], perm=[1, 0]),
        helper.make_node("Slice", ["rows", "zero", "one", "zero"], ["first"]),
        helper.make_node("Squeeze", ["first", "zero"], ["place"]),
        helper.make_node("Cast", ["place"], ["y"], to=TensorProto.FLOAT),
    ]
    model = image_model(nodes, {"zero": np.array([0]), "one": np.array([1])}, size=4)
    loaded, made = written(tmp_path, model)
    assert loaded.graph.signature.outputs[0].shape == (4,)
    assert_round_trip(model, loaded, made)


def test_an_open_axis_that_must_be_1_is_squeezed(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="c", kernel_shape=[9], strides=[16]),
        helper.make_node("Squeeze", ["c", "two"], ["y"]),
    ]
    model = onnx_files.model_of(
        nodes,
        [("x", TensorProto.FLOAT, [1, 3, "length"])],
        [("y", TensorProto.FLOAT, [1, 4])],
        {"w": random_weight(4, 3, 9), "two": np.array([2])},
        opset=17,
    )
    loaded, made = written(tmp_path, model)
    assert [n.op_type for n in made.graph.node] == ["Conv", "Squeeze"]
    assert_round_trip(model, loaded, made)
    with pytest.raises(RuntimeError):  # as ONNX Runtime does
        read_onnx(model)(torch.randn(1, 3, 64))


def _loop():
    """A body that says nothing of shapes: results of unknown rank."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["i"], ["k"], to=TensorProto.FLOAT),
            helper.make_node("Add", ["acc", "k"], ["next"]),
            helper.make_node("Identity", ["cond"], ["again"]),
        ],
        "body",
        [
            info("i", TensorProto.INT64, []),
            info("cond", TensorProto.BOOL, []),
            info("acc", TensorProto.FLOAT, None),
        ],
        [info("again", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("Loop", ["times", "", "x"], ["r"], name="loop", body=body),
        helper.make_node("Conv", ["r", "w"], ["y"], name="conv", kernel_shape=[1, 1]),
    ]
    return image_model(nodes, {"times": np.array(3), "w": random_weight(2, 3, 1, 1)}, size=4)


def _unknown_branches():
    """Branches that say nothing of shapes."""

    def branch(op, made):
        out = helper.make_tensor_value_info(made, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x"], [made])], op, [], [out])

    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node(
            "If",
            ["c"],
            ["r"],
            name="choice",
            then_branch=branch("Squeeze", "t"),
            else_branch=branch("Identity", "e"),
        ),
        helper.make_node("Conv", ["r", "w"], ["y"], name="conv", kernel_shape=[1, 1]),
    ]
    weights = {"zero": np.float32(0), "w": random_weight(2, 3, 1, 1)}
    return image_model(nodes, weights, size=4)


@pytest.mark.parametrize("model", [_loop(), _unknown_branches()], ids=["loop", "if"])
@pytest.mark.parametrize("opset", [17, 20])
def test_results_of_unknown_rank_have_the_rank_that_they_had(tmp_path, model, opset):
    loaded, made = written(tmp_path, model, opset=opset)
    assert loaded.graph.signature.outputs[0].shape[1] == 2
    assert_round_trip(model, loaded, made)


def test_names_inside_a_branch_are_not_those_of_its_operands(tmp_path):
    """A branch of a file may call its tensors what an operand is called in the node's own model."""
    out = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    body = [
        helper.make_node("Relu", ["x"], ["x0"], name="first"),
        helper.make_node("Neg", ["x0"], ["t"], name="second"),
    ]
    other = helper.make_tensor_value_info("x1", TensorProto.FLOAT, None)
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node(
            "If",
            ["c"],
            ["y"],
            name="choice",
            then_branch=helper.make_graph(body, "then", [], [out]),
            else_branch=helper.make_graph(
                [helper.make_node("Abs", ["x"], ["x1"])], "else", [], [other]
            ),
        ),
    ]
    model = image_model(nodes, {"zero": np.float32(0)}, size=4)
    loaded, made = written(tmp_path, model)
    assert_round_trip(model, loaded, made)


def test_a_branch_that_sizes_choose_is_none_of_the_runtimes(tmp_path):
    """Also the nodes of the branch that is not taken are not counted."""

    def branch(op, made):
        out = helper.make_tensor_value_info(made, TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node(op, ["x"], [made], name=op)], op, [], [out])

    nodes = [
        helper.make_node("Shape", ["x"], ["s"], start=1, end=2),
        helper.make_node("Equal", ["s", "three"], ["c"]),
        helper.make_node(
            "If", ["c"], ["y"], then_branch=branch("Relu", "t"), else_branch=branch("Det", "e")
        ),
    ]
    model = image_model(nodes, {"three": np.array([3])}, batch=1)
    loaded, made = written(tmp_path, model)
    assert [n.op_type for n in made.graph.node] == ["Relu"]
    assert not [n for n in loaded.notes if "ONNX Runtime computes" in n]


def test_a_library_of_ops_that_is_not_there(tmp_path):
    with pytest.raises(ModelError, match="there is no such file"):
        use_library(tmp_path / "ops.so")


def test_layers_inside_branches_are_said_to_be_there(tmp_path):
    """A branch that the data choose is one node: what is in it cannot be quantized."""
    shape = ["batch", 4]

    def branch(name: str, weight: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        node = helper.make_node("MatMul", ["x", weight], [name], name=f"product_{name}")
        return helper.make_graph([node], name, [], [out])

    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], "most", keepdims=0),
        helper.make_node("Greater", ["most", "zero"], ["positive"], "positive"),
        helper.make_node(
            "If",
            ["positive"],
            ["y"],
            "choose",
            then_branch=branch("a", "w"),
            else_branch=branch("b", "w"),
        ),
    ]
    model = onnx_files.model_of(
        nodes,
        [("x", TensorProto.FLOAT, shape)],
        [("y", TensorProto.FLOAT, shape)],
        {"w": random_weight(4, 4), "zero": np.array(0, np.float32)},
        opset=17,
        check=False,
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match=r"outside of 1 nodes that ONNX Runtime.*If, Loop"):
        trtq.quantize(str(tmp_path / "m.onnx"), "random:4", calib_cache=str(tmp_path / "cache"))
