"""FP16 graphs: what stays in float32 and why, and that the types fit everywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import trtq
from tests.conftest import spec
from trtq import BuildSpec, build, quantize
from trtq.export.fp16 import HALF_MAX, convert_to_half, operand_types, rounded
from trtq.export.fp16_ranges import (
    FLOAT_NODES,
    IMAGES,
    constants_beyond_half,
    find_float_nodes,
    mark_float_nodes_,
)
from trtq.export.onnx_file import get_metadata, load_onnx
from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.graph.capture import capture


class Large(torch.nn.Module):
    """A residual stream around ``level``, then LayerNorm: pain 8."""

    def __init__(self, level: float = 1400.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch = torch.nn.Conv2d(3, 16, 4, 4)
        self.norm = torch.nn.LayerNorm(16)
        self.head = torch.nn.Linear(16, 10)
        self.level = level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.level
        return self.head(self.norm(x).mean(1))


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()))


def answers(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return open_session(model).run(None, {"input": x})[0]


@pytest.mark.parametrize("opset", [13, 20])
@pytest.mark.parametrize("level", [900.0, 1400.0])
def test_pain_8_a_layer_norm_of_large_values_keeps_its_answers_in_fp16(opset, level):
    captured = capture(Large(level), (3, 32, 32))
    model = export_onnx(captured.module, opset=opset)
    x = np.random.default_rng(0).standard_normal((16, 3, 32, 32)).astype(np.float32)
    wanted = answers(model, x)
    kept = find_float_nodes(model, [x])
    assert any("norm" in n for n in kept)
    assert any(
        "add" in n for n in kept
    )  # a difference of large numbers is lost before it is computed
    plain, safe = (rounded(convert_to_half(model, names)) for names in ((), kept))
    assert sqnr(wanted, answers(safe, x)) > 40.0
    assert (answers(safe, x).argmax(1) == wanted.argmax(1)).all()
    lost = answers(plain, x)
    assert (
        not np.isfinite(lost).all() or sqnr(wanted, lost) < 25.0
    )  # without the islands it is lost
    onnx.checker.check_model(convert_to_half(model, kept), full_check=True)


def test_small_values_need_no_islands():
    captured = capture(Large(0.5), (3, 32, 32))
    model = export_onnx(captured.module, opset=20)
    assert (
        find_float_nodes(
            model, [np.random.default_rng(0).standard_normal((8, 3, 32, 32)).astype(np.float32)]
        )
        == {}
    )


def make(nodes, weights=(), shape=(1, 4)) -> onnx.ModelProto:
    out = nodes[-1].output[0]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.float32(v), n) for n, v in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_range_far_beyond_fp16_behind_ops_that_only_move():
    nodes = [
        helper.make_node("Mul", ["input", "w"], ["a"], name="mul"),
        helper.make_node("Flatten", ["a"], ["y"], name="flat"),
    ]
    model = make(nodes, [("w", 1e5)])
    assert set(find_float_nodes(model, [np.ones((1, 4), np.float32)])) == {"mul", "flat"}


def test_every_form_of_a_constant_gets_the_type_of_its_readers():
    nodes = [
        helper.make_node("Constant", [], ["c"], name="c", value_float=2.0),
        helper.make_node("Constant", [], ["d"], name="d", value_floats=[1.0] * 4),
        helper.make_node("Mul", ["input", "c"], ["a"], name="mul"),
        helper.make_node("Add", ["a", "d"], ["b"], name="add"),
        helper.make_node("Shape", ["b"], ["s"], name="shape"),
        helper.make_node("ConstantOfShape", ["s"], ["z"], name="zeros"),
        helper.make_node("EyeLike", ["b"], ["e"], name="eye", dtype=1),
        helper.make_node("Add", ["b", "z"], ["f"], name="add2"),
        helper.make_node("Add", ["f", "e"], ["y"], name="add3"),
    ]
    model = make(nodes, shape=(4, 4))
    half = convert_to_half(model)
    x = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    np.testing.assert_allclose(
        answers(half, x), answers(model, x), rtol=2e-3, atol=2e-3
    )  # ONNX Runtime takes the types


def test_an_op_that_inference_does_not_know_stays_in_float_with_what_reads_it():
    nodes = [
        helper.make_node("Mine", ["input"], ["m"], name="mine", domain="com.me"),
        helper.make_node("Add", ["m", "w"], ["y"], name="add"),
    ]
    model = make(nodes, [("w", 1.0)])
    model.opset_import.append(helper.make_opsetid("com.me", 1))
    half = convert_to_half(model)
    assert {i.name: i.data_type for i in half.graph.initializer} == {"w": TensorProto.FLOAT}
    assert not [n for n in half.graph.node if n.op_type == "Cast"]


def test_what_is_added_up_counts_even_when_the_mean_is_small():
    """10,000 values of 10 have a mean of 10 and a sum of 100,000, beyond FP16."""
    model = make(
        [helper.make_node("ReduceMean", ["input"], ["y"], name="mean", axes=[1])], shape=(1, 10000)
    )
    kept = find_float_nodes(model, [np.full((1, 10000), 10.0, np.float32)])
    assert kept == {"mean": "what it adds up reaches 1e+05 on the images seen, FP16 ends at 65504"}
    assert find_float_nodes(model, [np.full((1, 10000), 0.1, np.float32)]) == {}


def test_a_range_that_comes_too_near_the_end_counts():
    model = make([helper.make_node("Mul", ["input", "w"], ["y"], name="mul")], [("w", 1000.0)])
    x = np.array([[1.0, 2.0, 3.0, 17.0]], np.float32)
    assert find_float_nodes(model, [x]) == {
        "mul": "its values reach 1.7e+04 on the images seen, FP16 ends at 65504"
    }
    assert find_float_nodes(model, [x * 0.9]) == {}  # four times 15,300 still fits
    assert mark_float_nodes_(model, [x]).startswith("in FP16 engines 1 node remains in FP32, mul: ")


def test_constants_that_fp16_has_not():
    nodes = [
        helper.make_node("Add", ["input", "eps"], ["a"], name="add"),
        helper.make_node("Mul", ["a", "big"], ["y"], name="mul"),
    ]
    found = constants_beyond_half(make(nodes, [("eps", 1e-12), ("big", 1e6)]))
    assert found["add"].startswith("its constant eps keeps 0.0 dB in FP16")
    assert found["mul"] == "its constant big reaches 1e+06, FP16 ends at 65504"
    # The squares of these are 0 in float32.
    for tiny in (1e-24, 1.2e-38):
        assert set(constants_beyond_half(make(nodes, [("eps", tiny), ("big", 1.0)]))) == {"add"}
    half = convert_to_half(make(nodes, [("eps", 1e-12), ("big", 1e6)]), found)
    assert {i.name: i.data_type for i in half.graph.initializer} == {
        "eps": TensorProto.FLOAT,
        "big": TensorProto.FLOAT,
    }


@settings(max_examples=40)
@given(st.floats(-3.0, 6.0))
def test_nothing_is_kept_where_fp16_is_right_and_something_where_it_is_not(power):
    """A Mul by 10^power is kept only where FP16 is wrong.

    It is kept exactly when four times its largest value passes the end, or the constant does not
    survive rounding.
    """
    factor = np.float32(10.0**power)
    model = make([helper.make_node("Mul", ["input", "w"], ["y"], name="mul")], [("w", factor)])
    x = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    assert bool(find_float_nodes(model, [x])) == bool(3.0 * factor * 4.0 > HALF_MAX)


def test_operand_types_come_from_the_standard():
    resize = helper.make_node("Resize", ["x", "", "scales"], ["y"])
    assert operand_types(resize, 17) == ([True, True, False], [True])
    own = helper.make_node("Mine", ["x"], ["y"], domain="com.me")
    assert operand_types(own, 17) == ([False], [False])


def test_a_file_that_is_typed_already_stays_what_it_is(cnn_out):
    model = load_onnx(cnn_out / "model.qdq.onnx")
    once = convert_to_half(model)
    assert convert_to_half(once) == once


def test_quantize_writes_what_it_saw_and_build_keeps_to_it(images: Path, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    quantize(spec(images, tmp_path / "q", model=f"{__name__}:large"))
    stored = get_metadata(load_onnx(tmp_path / "q/model.fp32.onnx"))[FLOAT_NODES]
    assert any("norm" in n for n in stored)
    assert IMAGES == 16
    made = build(
        BuildSpec(
            onnx=f"{tmp_path}/q/model.fp32.onnx",
            target="rtx3080",
            precision="fp16",
            out=f"{tmp_path}/e.engine",
        )
    )
    assert made.float_nodes == stored
    assert f"{len(stored)} nodes remain in FP32" in made.notes[0]
    read = (tmp_path / "q/quantize.json").read_text()
    assert "in FP16 engines" in read


def large() -> torch.nn.Module:
    return Large()


def test_a_file_that_does_not_say_is_looked_at_for_constants_alone(cnn_out: Path, tmp_path: Path):
    pytest.importorskip("tensorrt_rtx")
    model = load_onnx(cnn_out / "model.fp32.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "m.onnx")
    made = build(
        BuildSpec(
            onnx=f"{tmp_path}/m.onnx",
            target="rtx3080",
            precision="fp16",
            out=f"{tmp_path}/e.engine",
        )
    )
    said = (
        "FP16: the file does not say which tensors leave its range, only constants were looked "
        "at (trtq export looks at images)"
    )
    assert made.notes == [said]


@pytest.mark.parametrize("scale", [2.0**-6, 0.0123, 2e-6])
def test_a_pair_is_fp16_where_fp16_has_its_scale(scale):
    nodes = [
        helper.make_node("Mul", ["input", "one"], ["a"], name="mul"),
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"),
        helper.make_node("Add", ["d", "one"], ["y"], name="add"),
    ]
    model = make(nodes, [("one", 1.0), ("s", scale)])
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "z"))
    model.opset_import[0].version = 20
    half = convert_to_half(model)
    held = {i.name: numpy_helper.to_array(i) for i in half.graph.initializer}
    for node in half.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found = held[node.input[1]]
            assert found.dtype == (np.float16 if scale == 2.0**-6 else np.float32)
            assert found.astype(np.float32) == np.float32(scale)  # the number itself never changes
    answers(half, np.ones((1, 4), np.float32))  # ONNX Runtime takes the types
    kept = convert_to_half(
        model, ["mul", "add"]
    )  # what makes the data and what reads the values stay in float: so does the pair
    assert not any(i.data_type == TensorProto.FLOAT16 for i in kept.graph.initializer)


def test_quantize_settles_scales_on_numbers_that_fp16_has(cnn_out: Path):
    model = load_onnx(cnn_out / "model.qdq.onnx")
    half = convert_to_half(model)
    held = {i.name: numpy_helper.to_array(i) for i in half.graph.initializer}
    scales = [held[n.input[1]] for n in half.graph.node if n.op_type == "DequantizeLinear"]
    assert scales
    assert all(s.dtype == np.float16 for s in scales)
    codes = {
        n.name: numpy_helper.to_array(next(i for i in m.graph.initializer if i.name == n.input[0]))
        for m in (model, half)
        for n in m.graph.node
        if n.op_type == "QuantizeLinear" and any(i.name == n.input[0] for i in m.graph.initializer)
    }
    assert all(
        v.dtype == np.float32 for v in codes.values()
    )  # the codes of weights are made from float32


class Dead(torch.nn.Module):
    """Linear layers of one input; one has a channel of nearly zero, as pruning leaves it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (torch.nn.Linear(16, 8, bias=False) for _ in range(2))
        self.last = torch.nn.Linear(8, 4)
        self.first.weight.data[3] *= 1e-7

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.first(x) + self.second(x)))


def test_both_operands_of_a_product_have_scales_of_one_type(tmp_path):
    """TensorRT builds no product of an FP16 and a float32 scale."""
    quantized = trtq.quantize(
        Dead().eval(), torch.randn(32, 16), bits="w8a8", preset_quant="none", task="tensors"
    )
    model = quantized.done.qdq
    half = convert_to_half(model)
    held = {i.name: i.data_type for i in half.graph.initializer}
    producer = {o: n for n in half.graph.node for o in n.output}

    def scale_type(name: str) -> int:
        while producer[name].op_type != "DequantizeLinear":
            name = producer[name].input[0]
        return held[producer[name].input[1]]

    products = [n for n in half.graph.node if n.op_type in ("MatMul", "Gemm")]
    kinds = [[scale_type(name) for name in node.input[:2]] for node in products]
    whole, short = TensorProto.FLOAT, TensorProto.FLOAT16
    assert sorted(kinds) == [[whole, whole], [whole, whole], [short, short]]  # a shared input
    x = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    assert sqnr(answers(model, x), answers(half, x)) > 50
    pytest.importorskip("tensorrt_rtx")
    built = trtq.build(quantized, target="rtx4090", precision="fp16").manifest
    assert "3 of 3 quantized layers in INT8" in built.summary
