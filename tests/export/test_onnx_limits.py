"""ONNX graphs at the limits: constants of any size, branches, names that meet, stored tables."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.support.onnx_files import model_of
from trtq.errors import ExportError
from trtq.export import sound
from trtq.export.insert_qdq import insert_qdq
from trtq.export.lint import lint
from trtq.export.lint_view import ANY
from trtq.export.onnx_file import read_onnx, save_onnx
from trtq.export.ort import open_session
from trtq.export.sound import require_sound
from trtq.export.strip import strip_qdq
from trtq.export.tables import table_sizes
from trtq.onnx_walk import scopes

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
RNG = np.random.default_rng(0)


def only(node: onnx.NodeProto, **constants: object) -> onnx.ModelProto:
    arrays = {n: np.asarray(v) for n, v in constants.items()}
    return model_of([node], [("x", FLOAT, [1])], [("y", FLOAT, None)], arrays, check=False)


@pytest.mark.parametrize(
    ("kind", "constants"),
    [
        ("ConstantOfShape", {"shape": np.int64([1 << 40])}),
        ("Expand", {"a": np.float32([1.0]), "shape": np.int64([1 << 20, 1 << 20])}),
        ("Add", {"a": np.zeros((1 << 15, 1), np.float32), "b": np.zeros((1, 1 << 15), np.float32)}),
        ("Range", {"a": np.int64(0), "b": np.int64(9), "step": np.int64(0)}),
    ],
)
def test_a_constant_that_cannot_be_computed_is_unknown(kind, constants):
    model = only(helper.make_node(kind, list(constants), ["y"], name="n"), **constants)
    assert scopes(model)[0].value("y") is None


def test_constants_are_computed_without_a_warning(recwarn):
    model = only(helper.make_node("Log", ["a"], ["y"]), a=np.float32([0.0, 1.0]))
    assert scopes(model)[0].value("y").tolist() == [-np.inf, 0.0]
    assert not recwarn.list


def test_a_branch_may_dequantize_codes_of_the_graph_around_it():
    branches = {}
    for name, kind in (("then_branch", "DequantizeLinear"), ("else_branch", "Cast")):
        inputs, more = (["codes", "s", "z"], {}) if kind != "Cast" else (["x"], {"to": FLOAT})
        node = helper.make_node(kind, inputs, [f"{name}_out"], name=name, **more)
        out = helper.make_tensor_value_info(f"{name}_out", FLOAT, [2])
        branches[name] = helper.make_graph([node], name, [], [out])
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["codes"], name="q"),
        helper.make_node("If", ["c"], ["y"], name="if", **branches),
    ]
    model = model_of(
        nodes,
        [("x", FLOAT, [2]), ("c", TensorProto.BOOL, [])],
        [("y", FLOAT, [2])],
        {"s": np.float32(0.5), "z": np.int8(0)},
    )
    x = np.float32([0.3, -0.7])
    got = open_session(strip_qdq(model)).run(None, {"x": x, "c": np.array(True)})[0]
    np.testing.assert_array_equal(got, x)


def test_a_tensor_that_two_nodes_make_is_damage():
    nodes = [helper.make_node(k, ["x"], ["y"], name=k) for k in ("Relu", "Neg")]
    model = model_of(nodes, [("x", FLOAT, [1])], [("y", FLOAT, [1])], check=False)
    with pytest.raises(ExportError, match=r"Cannot use m: it is damaged: 'y' is made twice"):
        require_sound(model, "m")


def test_pairs_of_a_weight_and_its_namesake_have_names_of_their_own():
    """A weight read along axis 1 gives its pair the name that ``w.1`` has."""
    w, other = (RNG.standard_normal(s).astype(np.float32) for s in ((8, 8), (2, 2, 1, 1)))
    nodes = [
        helper.make_node("Conv", ["x", "w.1"], ["a"], name="conv"),
        helper.make_node("Flatten", ["a"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="mm"),
    ]
    model = model_of(
        nodes, [("x", FLOAT, [1, 2, 2, 2])], [("y", FLOAT, [1, 8])], {"w.1": other, "w": w}
    )
    made = insert_qdq(model, {"x": 0.03, "f": 0.05}).model
    onnx.checker.check_model(made)
    held = {i.name: numpy_helper.to_array(i) for i in made.graph.initializer}
    scales = {n.input[0]: held[n.input[1]] for n in made.graph.node if n.op_type[0] == "Q"}
    np.testing.assert_allclose(scales["w"], np.abs(w).max(axis=0) / 127, rtol=1e-6)
    np.testing.assert_allclose(scales["w.1"], np.abs(other).max(axis=(1, 2, 3)) / 127, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_weight_that_is_not_finite_gets_no_pair(bad):
    weight = np.full((1, 1, 1, 1), bad, np.float32)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv")
    model = model_of(
        [node], [("x", FLOAT, [1, 1, 2, 2])], [("y", FLOAT, [1, 1, 2, 2])], {"w": weight}
    )
    done = insert_qdq(model, {"x": 0.03})
    assert done.missing == {"conv": "its weight has values that are NaN or infinite"}
    assert done.weights == {}


@pytest.mark.parametrize(
    ("nodes", "rows"),
    [
        ([], 1000),
        ([helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0])], 8),
        ([helper.make_node("Transpose", ["w"], ["t"])], 8),
        ([helper.make_node("Identity", ["w"], ["t"])], 1000),
        ([helper.make_node("Slice", ["w", "from", "to"], ["t"])], None),
    ],
    ids=["stored", "transposed", "reversed", "identity", "slice"],
)
def test_a_table_has_the_rows_that_its_reader_sees(nodes, rows):
    """Indices are drawn below this number: a transposed table of 1000 x 8 has 8 rows."""
    gather = helper.make_node("Gather", ["t" if nodes else "w", "ids"], ["y"])
    weights = {"w": np.zeros((1000, 8), np.float32), "from": np.int64([0]), "to": np.int64([3])}
    model = model_of(
        [*nodes, gather], [("ids", INT64, [2])], [("y", FLOAT, None)], weights, check=False
    )
    assert table_sizes(model).get("ids") == rows


@pytest.mark.parametrize("name", ["a\0b", "a" * 5000])
def test_tensors_in_a_file_that_cannot_exist(name, tmp_path):
    model = only(helper.make_node("Add", ["x", "w"], ["y"]), w=np.float32([1.0]))
    held = model.graph.initializer[0]
    held.ClearField("raw_data")
    held.data_location = TensorProto.EXTERNAL
    held.external_data.add(key="location", value=name)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(
        ExportError, match=r"model\.onnx: its tensors are in a file of no usable name: 'a"
    ):
        read_onnx(path)


def test_a_model_larger_than_a_file_is_refused_before_it_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sound, "LARGEST_PROTOBUF", 10_000_000)
    weight = np.zeros(3_000_000, np.float32)
    model = only(helper.make_node("Add", ["x", "w"], ["y"]), w=weight)
    with pytest.raises(
        ExportError,
        match=r"Cannot write big\.onnx: its tensors take 0\.0 GB, and an ONNX file ends at 2 GB\. "
        r"Use a smaller model, or cut it into parts of less than 2 GB",
    ):
        save_onnx(model, tmp_path / "big.onnx")


def test_text_of_an_attribute_may_be_any_bytes():
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], name="r")
    node.attribute.append(helper.make_attribute("mode", b"\xff\xfe"))
    model = only(node, s=np.float32([1.0]))
    assert "L24" not in {f.rule for f in lint(model, ANY)}


def test_a_weight_that_is_read_along_two_axes_has_both_ranges():
    w = RNG.standard_normal((8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="columns"),
        helper.make_node("Gemm", ["a", "w"], ["y"], name="rows", transB=1),
    ]
    model = model_of(nodes, [("x", FLOAT, [1, 8])], [("y", FLOAT, [1, 8])], {"w": w})
    done = insert_qdq(model, {"x": 0.03, "a": 0.05})
    found = {done.axes[n]: v for n, v in done.weights.items()}
    assert set(found) == {0, 1}
    for axis, amax in found.items():
        np.testing.assert_allclose(amax, np.abs(w).max(axis=1 - axis), rtol=1e-6)


@pytest.mark.parametrize("op", ["Add", "Identity"])
def test_the_sign_of_a_tensor_is_found_over_any_number_of_paths(op):
    """2^200 paths to one ReLU, and 2,000 steps behind it: no activation is lost or added."""
    steps = 200 if op == "Add" else 2000
    nodes = [helper.make_node("Relu", ["x"], ["a0"], name="relu")]
    for k in range(steps):
        inputs = [f"a{k}"] * (2 if op == "Add" else 1)
        nodes.append(helper.make_node(op, inputs, [f"a{k + 1}"], name=f"step{k}"))
    codes = {"scale": np.float32(0.5), "zero": np.uint8(0)}
    nodes += [
        helper.make_node("QuantizeLinear", [f"a{steps}", *codes], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", *codes], ["y"], name="dq"),
    ]
    held = {name: np.asarray(value) for name, value in codes.items()}
    model = model_of(nodes, [("x", FLOAT, [1])], [("y", FLOAT, [1])], held)
    ops = [n.op_type for n in strip_qdq(model).graph.node]
    assert ops.count("Relu") == 1 and "QuantizeLinear" not in ops
