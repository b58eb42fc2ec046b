"""Sizes, slices and places as ONNX Runtime has them, and constants of every type of floats."""

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.support.onnx_files import model_of, random_weight
from trtq.export.ort import open_session
from trtq.reader import read_onnx

FLOAT, HALF, INT = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def assert_reads_alike(nodes, weights, x, *, kind=FLOAT, opset=18, outputs=1, within=1e-5):
    """Read a model, and compare what it gives with ONNX Runtime."""
    names = ["y", *(f"y{i}" for i in range(1, outputs))]
    given = [("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)]
    ends = [(n, kind, None) for n in names]
    model = model_of(nodes, given, ends, weights, opset=opset, check=False)
    wanted = open_session(model).run(None, {"x": x})
    module = read_onnx(model)
    with torch.no_grad():
        got = module(torch.from_numpy(x))
    for answer, right in zip(got.values(), wanted, strict=True):
        assert answer.shape == right.shape
        assert answer.numpy().dtype == right.dtype
        np.testing.assert_allclose(answer.numpy(), right, rtol=within, atol=within)
    return module


IMAGE = random_weight(1, 2, 10, 13)


@pytest.mark.parametrize("factor", [0.7, 2.3, 1.7, 7 / 9, 1.234567])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_size_by_a_factor_is_rounded_as_in_float32(factor, mode):
    attributes = {"mode": mode}
    if mode == "nearest":
        place = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        attributes |= place
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], **attributes)
    assert_reads_alike([node], {"s": np.float32([1, 1, factor, factor])}, IMAGE)


def test_the_floor_of_a_size_by_a_factor_is_that_of_float32():
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Gather", ["sizes", "two"], ["height"]),
        helper.make_node("Cast", ["height"], ["float"], to=FLOAT),
        helper.make_node("Mul", ["float", "factor"], ["part"]),
        helper.make_node("Floor", ["part"], ["floor"]),
        helper.make_node("Cast", ["floor"], ["end"], to=INT),
        helper.make_node("Slice", ["x", "zero", "end", "two"], ["y"]),
    ]
    weights = {"two": np.array([2]), "zero": np.array([0]), "factor": np.float32(0.7)}
    assert_reads_alike(nodes, weights, IMAGE)


@pytest.mark.parametrize(
    ("start", "end"), [(-1, 13), (-1, 15), (-20, -100), (3, -100), (100, 5), (-3, 2)]
)
@pytest.mark.parametrize("of", ["values", "sizes"])
def test_slices_backwards(start, end, of):
    ends = {"start": np.array([start]), "end": np.array([end]), "step": np.array([-1])}
    axis, source = (3, "x") if of == "values" else (0, "sizes")
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Slice", [source, "start", "end", "axis", "step"], ["y"]),
    ]
    kind = FLOAT if of == "values" else INT
    assert_reads_alike(nodes, {**ends, "axis": np.array([axis])}, IMAGE, kind=kind)


def test_numbers_that_follow_from_sizes():
    nodes = [
        helper.make_node("Shape", ["x"], ["four"]),
        helper.make_node("Concat", ["four", "four"], ["eight"], axis=0),
        helper.make_node("Slice", ["eight", "zero", "seven"], ["parts"]),
        helper.make_node("Split", ["parts"], ["y", "y1", "y2"], num_outputs=3),
        helper.make_node("Neg", ["four"], ["below"]),
        helper.make_node("Mod", ["below", "three"], ["y3"], fmod=1),
        helper.make_node("Mod", ["below", "three"], ["y4"]),
        helper.make_node("Shape", ["x"], ["none"], start=4),
        helper.make_node("ReduceProd", ["none"], ["y5"], keepdims=0),
    ]
    weights = {"zero": np.array([0]), "seven": np.array([7]), "three": np.array(3)}
    assert_reads_alike(nodes, weights, IMAGE, kind=INT, outputs=6)


def test_powers_broadcast_and_sums_of_nothing_are_nothing():
    node = helper.make_node("Pow", ["x", "two"], ["y"])
    assert_reads_alike([node], {"two": np.float32([[2]])}, np.float32([1, 2, 3]))
    node = helper.make_node("CumSum", ["x", "axis"], ["y"], exclusive=1)
    assert_reads_alike([node], {"axis": np.array(1)}, np.zeros((2, 0), np.float32))


def test_one_value_is_its_own_mean():
    node = helper.make_node("InstanceNormalization", ["x", "w", "b"], ["y"])
    weights = {"w": np.float32([1, 2]), "b": np.float32([3, 4])}
    assert_reads_alike([node], weights, IMAGE[:, :, :1, :1].copy(), within=1e-4)


def test_a_clip_of_integers_is_no_activation():
    nodes = [
        helper.make_node("Add", ["x", "three"], ["moved"]),
        helper.make_node("Clip", ["moved", "zero", "six"], ["inside"]),
        helper.make_node("Div", ["inside", "six"], ["y"]),
    ]
    weights = {"three": np.array(3), "zero": np.array(0), "six": np.array(6)}
    assert_reads_alike(nodes, weights, np.array([-5, 0, 1, 9]), kind=INT)


def branch(nodes, output, weight):
    held = numpy_helper.from_array(np.array(weight, np.float16), f"{output}.w")
    ends = [helper.make_tensor_value_info(output, HALF, None)]
    return helper.make_graph(nodes, output, [], ends, [held])


def test_fp16_in_branches():
    then = branch([helper.make_node("Mul", ["x", "a.w"], ["a"])], "a", 2)
    otherwise = branch([helper.make_node("Add", ["x", "b.w"], ["b"])], "b", 1)
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"]),
        helper.make_node("If", ["positive"], ["y"], then_branch=then, else_branch=otherwise),
    ]
    for x in (np.float16([1, 2]), np.float16([-1, -2])):
        assert_reads_alike(nodes, {"zero": np.float16(0)}, x, kind=HALF, within=1e-3)


def test_fp16_in_loops():
    body = helper.make_graph(
        [
            helper.make_node("Cast", ["i"], ["step"], to=HALF),
            helper.make_node("Add", ["before", "step"], ["after"]),
            helper.make_node("Identity", ["go"], ["on"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", INT, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("before", HALF, [2]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("after", HALF, [2]),
        ],
    )
    node = helper.make_node("Loop", ["times", "", "x"], ["y"], body=body)
    x = np.float16([1, 2])
    assert_reads_alike([node], {"times": np.array(3)}, x, kind=HALF, within=1e-3)


def test_a_filled_fp16_tensor_is_multiplied_in_float32():
    value = numpy_helper.from_array(np.float16([0.5]))
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("ConstantOfShape", ["sizes"], ["filled"], value=value),
        helper.make_node("MatMul", ["x", "filled"], ["y"]),
    ]
    assert_reads_alike(nodes, {}, np.float16([[1, 2], [3, 4]]), kind=HALF, within=1e-3)


def test_a_bf16_constant_can_be_an_output():
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Identity", ["k"], ["z"]),
    ]
    ends = [("y", FLOAT, [2]), ("z", TensorProto.BFLOAT16, [2])]
    weights = {"k": np.array([1.5, 2], ml_dtypes.bfloat16)}
    module = read_onnx(model_of(nodes, [("x", FLOAT, [2])], ends, weights))
    answer = module(torch.ones(2))["z"]
    assert answer.dtype == torch.bfloat16
    assert answer.tolist() == [1.5, 2.0]


def test_nodes_may_be_called_like_any_part_of_the_module_that_they_become():
    nodes = [
        helper.make_node("Relu", ["x"], ["y"], name="first"),
        helper.make_node("Identity", ["k"], ["y1"]),
    ]
    weights, x = {"k": np.float32([1, 2])}, np.float32([-1, 2])
    module = assert_reads_alike(nodes, weights, x, outputs=2)
    names = sorted({*dir(module), *dir(module.first), "/run/Conv", "fixed_output_1"} - {"first"})
    nodes += [helper.make_node("Relu", ["x"], [f"r.{n}"], name=n) for n in names]
    nodes.append(helper.make_node("Sum", [f"r.{n}" for n in names], ["y2"]))
    assert_reads_alike(nodes, weights, x, outputs=3)


def test_a_weight_may_have_the_name_of_another_ones_transpose():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("MatMul", ["a", "w/transposed"], ["y"]),
    ]
    weights = {"w": random_weight(3, 3), "w/transposed": np.float32(np.eye(3) * 5)}
    assert_reads_alike(nodes, weights, random_weight(2, 3))


def test_a_branch_that_is_taken_may_use_names_of_the_graph():
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["a"])],
        "then",
        [],
        [helper.make_tensor_value_info("a", FLOAT, None)],
    )
    nodes = [
        helper.make_node("Exp", ["x"], ["if/a"]),
        helper.make_node("If", ["yes"], ["z"], name="if", then_branch=inner, else_branch=inner),
        helper.make_node("Add", ["z", "if/a"], ["y"]),
    ]
    assert_reads_alike(nodes, {"yes": np.array(True)}, np.float32([1, 2]))


def test_a_constant_without_room_for_it_is_not_folded():
    nodes = [
        helper.make_node("ConstantOfShape", ["many"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    given = [("x", FLOAT, [2])]
    model = model_of(nodes, given, [("y", FLOAT, [2])], {"many": np.array([1 << 42])})
    assert [n.op_type for n in read_onnx(model).nodes][-1] == "Add"
