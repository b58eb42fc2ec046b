"""Nodes that ONNX Runtime computes, written in another opset than that of their file."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.reader.test_files import assert_round_trip, image_model, model_of, written
from tests.support.onnx_files import random_weight
from trtq.errors import ExportError

FLOAT = TensorProto.FLOAT


def _branch(made, *nodes):
    out = helper.make_tensor_value_info(made, FLOAT, None)
    return helper.make_graph(nodes, made, [], [out])


def _chosen(then, otherwise, weights=None, *, opset):
    """A model whose values choose one of two branches, which read ``x`` [batch, 4, 4, 4]."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], name="b", then_branch=then, else_branch=otherwise),
    ]
    held = {"zero": np.float32(0), **(weights or {})}
    return model_of(
        nodes, [("x", FLOAT, ["batch", 4, 4, 4])], [("y", FLOAT, None)], held, opset=opset
    )


def _reduced(name, axis):
    return _branch(name, helper.make_node("ReduceMax", ["x"], [name], axes=[axis]))


def _halved(name, which):
    """The first or the second half of the channels: the op has no sizes."""
    halves = [f"{name}_0", f"{name}_1"]
    halves[which] = name
    return _branch(name, helper.make_node("Split", ["x"], halves, axis=1))


def _nested(name):
    inner = helper.make_node(
        "If", ["c"], [name], then_branch=_reduced("d", 1), else_branch=_reduced("f", 2)
    )
    return _branch(name, inner)


@pytest.mark.parametrize("make", [_reduced, _halved])
def test_a_branch_is_converted(tmp_path, make):
    model = _chosen(make("t", 1), make("e", 0), opset=13)
    loaded, made = written(tmp_path, model, opset=20)
    assert [n.op_type for n in made.graph.node].count("If") == 1
    assert_round_trip(model, loaded, made)


def test_a_branch_in_a_branch_is_converted(tmp_path):
    model = _chosen(_nested("t"), _reduced("e", 1), opset=13)
    loaded, made = written(tmp_path, model, opset=20)
    assert_round_trip(model, loaded, made)


@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("scale", [2.0, 1.5])
def test_an_old_resampling_keeps_its_coordinates(tmp_path, op, opset, mode, scale):
    """They became an attribute with another default in opset 11."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[1, 1]),
        helper.make_node(op, ["c", "scales"], ["y"], name="up", mode=mode),
    ]
    scales = np.array([1, 1, scale, scale], np.float32)
    weights = {"w": random_weight(4, 3, 1, 1), "scales": scales}
    model = image_model(nodes, weights, size=4, opset=opset)
    loaded, made = written(tmp_path, model)
    assert_round_trip(model, loaded, made)


def test_an_old_resampling_in_a_branch_keeps_its_coordinates(tmp_path):
    def grown(name):
        return _branch(name, helper.make_node("Resize", ["x", "scales"], [name], mode="linear"))

    scales = {"scales": np.array([1, 1, 2, 2], np.float32)}
    model = _chosen(grown("t"), grown("e"), scales, opset=10)
    loaded, made = written(tmp_path, model)
    assert_round_trip(model, loaded, made)


def test_a_group_norm_in_a_branch_is_not_written_with_other_scales(tmp_path):
    def normed(name):
        node = helper.make_node("GroupNormalization", ["x", "g", "g"], [name], num_groups=2)
        return _branch(name, node)

    groups = {"g": np.array([1, 2], np.float32)}
    model = _chosen(normed("t"), normed("e"), groups, opset=18)
    loaded, made = written(tmp_path, model, opset=20)
    assert_round_trip(model, loaded, made)
    with pytest.raises(ExportError, match=r"Cannot write b \(If\) in opset 21: .*--opset 18"):
        written(tmp_path, model, opset=21)
