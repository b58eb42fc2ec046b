"""Whole files: constants, branches, names, types, round trips and what is refused."""

import functools

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import trtq
from tests.support import onnx_files
from tests.support.onnx_files import random_weight, text_encoder, two_images
from trtq.errors import CaptureError, ExportError, ModelError, UsageError
from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.reader import read_onnx

FLOAT = TensorProto.FLOAT


model_of = functools.partial(onnx_files.model_of, opset=17, check=False)


def image_model(nodes, weights, *, size=8, batch="batch", outputs=("y",), opset=17):
    given = [("x", FLOAT, [batch, 3, size, size])]
    return model_of(nodes, given, [(o, FLOAT, None) for o in outputs], weights, opset=opset)


def written(tmp_path, model, *, opset=17, **arguments):
    """Write a model to a file, load it, and return it with the file written from it."""
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    loaded = trtq.load(str(path), **arguments)
    return loaded, export_onnx(loaded.graph.module, opset=opset)


def assert_round_trip(model, loaded, made):
    feed = {
        t.name: e.numpy()
        for t, e in zip(loaded.graph.signature.inputs, loaded.graph.examples, strict=True)
    }
    before, after = open_session(model), open_session(made)
    for side in ("get_inputs", "get_outputs"):
        ports = [[(p.name, p.type) for p in getattr(s, side)()] for s in (before, after)]
        assert ports[0] == ports[1]
    for wanted, got in zip(before.run(None, feed), after.run(None, feed), strict=True):
        assert np.abs(wanted - got).max() <= 1e-5 * max(np.abs(wanted).max(), 1e-30)


def test_constants_behind_identity_cast_and_transpose_are_the_layers_own_weights():
    nodes = [
        helper.make_node(
            "Constant", [], ["raw"], value=numpy_helper.from_array(random_weight(3, 3, 4, 3))
        ),
        helper.make_node("Identity", ["raw"], ["same"]),
        helper.make_node("Transpose", ["same"], ["turned"], perm=[2, 3, 0, 1]),
        helper.make_node("Cast", ["turned"], ["w"], to=FLOAT),
        helper.make_node("Conv", ["x", "w"], ["y"], name="/stem/conv/Conv", kernel_shape=[3, 3]),
    ]
    module = read_onnx(image_model(nodes, {}))
    assert module.paths == ["stem.conv.Conv"]
    own = module.get_submodule("stem.conv.Conv").weight
    np.testing.assert_array_equal(own.detach(), random_weight(3, 3, 4, 3).transpose(2, 3, 0, 1))


def test_names_types_order_and_metadata_come_back(tmp_path):
    model = two_images()
    model.metadata_props.add(key="author", value="somebody")
    loaded, made = written(tmp_path, model)
    assert [n.name for n in made.graph.node] == ["conv", "conv_1", "sub", "pool", "relu"]
    assert {p.key: p.value for p in made.metadata_props}["author"] == "somebody"
    assert loaded.graph.dynamic_batch
    assert_round_trip(model, loaded, made)


def test_nodes_of_one_name_get_names_of_their_own(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[1, 1]),
        helper.make_node("Conv", ["c", "w"], ["d"], name="conv", kernel_shape=[1, 1]),
        helper.make_node("Relu", ["d"], ["y"], name="conv_1"),
    ]
    loaded, made = written(tmp_path, image_model(nodes, {"w": random_weight(3, 3, 1, 1)}))
    assert [n.name for n in made.graph.node] == ["conv", "conv_2", "conv_1"]
    assert "two nodes have the name conv: the second is renamed conv_2" in loaded.notes


def test_ids_and_masks_of_open_length_come_back(tmp_path):
    model = text_encoder()
    loaded, made = written(tmp_path, model)
    sizes = [t.shape for t in loaded.graph.signature.inputs]
    assert all(isinstance(d, str) for shape in sizes for d in shape)
    assert_round_trip(model, loaded, made)


def test_an_open_axis_survives_shape_gather_concat_reshape(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"], name="flat"),
    ]
    weights = {
        "zero": np.array(0),
        "axis": np.array([0]),
        "rest": np.array([-1, 64]),
    }
    loaded, made = written(tmp_path, image_model(nodes, weights))
    assert loaded.graph.signature.outputs[0].shape == ("batch", 3, 64)
    assert_round_trip(image_model(nodes, weights), loaded, made)


CLASS_TOKEN = [
    helper.make_node("Concat", ["n1", "one_by_eight"], ["shape"], axis=0),
    helper.make_node("Expand", ["token", "shape"], ["tokens"]),
    helper.make_node("Concat", ["tokens", "x"], ["y"], axis=1),
]
POSITIONS = [
    helper.make_node("Slice", ["table", "zero", "l1", "axis"], ["positions"]),
    helper.make_node("Add", ["x", "positions"], ["y"]),
]
REPEATED = [
    helper.make_node("Range", ["first", "l", "step"], ["index"]),
    helper.make_node("Gather", ["table", "index"], ["positions"], axis=0),
    helper.make_node("Add", ["x", "positions"], ["y"]),
]


@pytest.mark.parametrize("nodes", [CLASS_TOKEN, POSITIONS, REPEATED], ids=["token", "cut", "picks"])
def test_a_small_constant_that_grows_with_an_open_axis_leaves_it_open(tmp_path, nodes):
    sizes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["n"], axis=0),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Gather", ["s", "step"], ["l"], axis=0),
        helper.make_node("Unsqueeze", ["l", "axis"], ["l1"]),
    ]
    read = {i for n in (*sizes, *nodes) for i in n.input}
    held = {
        "first": np.array(0),
        "step": np.array(1),
        "zero": np.array([0]),
        "axis": np.array([0]),
        "one_by_eight": np.array([1, 8]),
        "token": random_weight(1, 1, 8),
        "table": random_weight(32, 8),
    }
    given = [("x", FLOAT, ["batch", "length", 8])]
    weights = {k: v for k, v in held.items() if k in read}
    model = model_of([*sizes, *nodes], given, [("y", FLOAT, None)], weights)
    loaded, made = written(tmp_path, model)
    assert loaded.graph.signature.inputs[0].shape == ("batch", "length", 8)
    assert_round_trip(model, loaded, made)


def test_a_file_may_call_its_input_and_output_by_the_names_of_one_image(tmp_path):
    nodes = [helper.make_node("Conv", ["input", "w"], ["output"], "conv", kernel_shape=[3, 3])]
    given = [("input", FLOAT, ["batch", 3, 8, 8])]
    weights = {"w": random_weight(4, 3, 3, 3)}
    model = model_of(nodes, given, [("output", FLOAT, None)], weights)
    loaded, made = written(tmp_path, model)
    assert loaded.graph.dynamic_batch
    assert [n.name for n in made.graph.node] == ["conv"]
    assert_round_trip(model, loaded, made)


def test_a_matmul_with_constants_and_its_bias_become_one_linear_layer(tmp_path):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="fc/MatMul"),
        helper.make_node("Add", ["b", "p"], ["y"], name="fc/Add"),
    ]
    given = [("x", FLOAT, ["batch", 8])]
    model = model_of(
        nodes,
        given,
        [("y", FLOAT, ["batch", 5])],
        {"w": random_weight(8, 5), "b": random_weight(5)},
    )
    loaded, made = written(tmp_path, model)
    targets = [str(n.target) for n in loaded.graph.module.graph.nodes if n.op == "call_function"]
    assert targets == ["aten.linear.default"]
    assert_round_trip(model, loaded, made)


@pytest.mark.parametrize("opset", [11, 13, 18, 21, 22, 23, 24, 25])
def test_old_and_new_forms_are_read(tmp_path, opset):
    axes = {"axes": [2, 3]} if opset < 18 else {}
    more = [] if opset < 18 else ["axes"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], auto_pad="SAME_UPPER", strides=[2, 2]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
        helper.make_node("Clip", ["n", "low", "high"], ["r"]),
        helper.make_node("ReduceMean", ["r", *more], ["p"], keepdims=0, **axes),
        helper.make_node("Softmax", ["p"], ["y"], axis=1),
    ]
    weights = {
        "w": random_weight(4, 3, 3, 3),
        **{k: np.ones(4, np.float32) for k in "gbmv"},
        "low": np.float32(0),
        "high": np.float32(6),
        "axes": np.array([2, 3]),
    }
    if opset < 18:
        del weights["axes"]
    model = image_model(nodes, weights, opset=opset)
    loaded, made = written(tmp_path, model)
    assert loaded.graph.passes["batch norm folded"] == 1
    assert_round_trip(model, loaded, made)


@pytest.mark.parametrize(
    ("opset", "nodes"),
    [
        (21, [helper.make_node("GroupNormalization", ["x", "g", "g"], ["y"], num_groups=3)]),
        (22, [helper.make_node("Mish", ["x"], ["y"])]),
        (23, [helper.make_node("RMSNormalization", ["x", "width"], ["y"])]),
        (24, [helper.make_node("Swish", ["x"], ["y"], alpha=1.5)]),
        (25, [helper.make_node("HardSwish", ["x"], ["y"])]),
    ],
)
def test_the_newest_opsets_are_read(tmp_path, opset, nodes):
    weights = {"g": random_weight(3), "width": random_weight(8)}
    used = {name: weights[name] for name in nodes[0].input if name in weights}
    model = image_model(nodes, used, opset=opset)
    loaded, made = written(tmp_path, model, opset=20)
    assert_round_trip(model, loaded, made)


def test_an_if_with_a_known_condition_is_its_branch():
    then = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["t"], name="r")],
        "then",
        [],
        [helper.make_tensor_value_info("t", FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["e"], name="n")],
        "else",
        [],
        [helper.make_tensor_value_info("e", FLOAT, None)],
    )
    node = helper.make_node("If", ["c"], ["y"], name="choice", then_branch=then, else_branch=other)
    module = read_onnx(image_model([node], {"c": np.array(True)}))
    assert [n.op_type for n in module.nodes] == ["Relu", "Identity"]


def test_a_fixed_batch_stays_and_another_size_is_refused(tmp_path):
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="relu")]
    path = tmp_path / "m.onnx"
    onnx.save(image_model(nodes, {}, batch=1), path)
    loaded = trtq.load(str(path))
    assert [t.shape for t in loaded.graph.signature.inputs] == [(1, 3, 8, 8)]
    assert not loaded.graph.dynamic_batch
    with pytest.raises(UsageError, match="its input x is fixed to 3x8x8") as caught:
        trtq.load(str(path), input_size=(3, 16, 16))
    assert "input_size=(3, 8, 8)" in caught.value.hint


def test_half_files_are_computed_in_float32_and_keep_their_types():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", kernel_shape=[3, 3])]
    model = model_of(
        nodes,
        [("x", TensorProto.FLOAT16, ["batch", 3, 8, 8])],
        [("y", TensorProto.FLOAT16, None)],
        {"w": random_weight(4, 3, 3, 3).astype(np.float16)},
    )
    module = read_onnx(model)
    answer = module(torch.zeros(2, 3, 8, 8, dtype=torch.float16))["y"]
    assert answer.dtype == torch.float16
    assert module.conv.weight.dtype == torch.float32
    assert module.notes == ["the constants of the file are FLOAT16: it is computed in float32"]


def test_external_data_is_read(tmp_path):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="conv", kernel_shape=[3, 3])]
    path = tmp_path / "m.onnx"
    onnx.save(
        image_model(nodes, {"w": random_weight(4, 3, 3, 3)}),
        path,
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    np.testing.assert_array_equal(read_onnx(path).conv.weight.detach(), random_weight(4, 3, 3, 3))
    (tmp_path / "m.data").unlink()
    with pytest.raises(ExportError, match="the file with its tensors is missing"):
        read_onnx(path)


def _relu(name="r", given="x", made="y"):
    return helper.make_node("Relu", [given], [made], name=name)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (
            lambda: image_model([_relu("a", "b", "c"), _relu("d", "c", "b"), _relu()], {}),
            "its nodes form a cycle through a (Relu)",
        ),
        (lambda: image_model([_relu()], {}, outputs=("y", "y")), "two outputs of the name 'y'"),
        (lambda: image_model([_relu()], {}, opset=99), "it is of opset 99"),
        (lambda: image_model([_relu()], {}, opset=6), "it is of opset 6, expected 7 or later"),
        (
            lambda: image_model([helper.make_node("Gelu", ["x"], ["y"], name="g")], {}, opset=13),
            "g (Gelu) needs opset 20, and the file is of opset 13",
        ),
        (
            lambda: image_model(
                [helper.make_node("DynamicQuantizeLinear", ["x"], ["y", "s", "z"], name="q")], {}
            ),
            "it is dynamically quantized: q (DynamicQuantizeLinear)",
        ),
        (
            lambda: model_of(
                [helper.make_node("ConvInteger", ["x", "w"], ["y"], name="q")],
                [("x", TensorProto.INT8, [1, 3, 8, 8])],
                [("y", TensorProto.INT32, None)],
                {"w": np.ones((4, 3, 3, 3), np.int8)},
            ),
            "it is quantized to integer operators (QOperator format): q (ConvInteger)",
        ),
        (
            lambda: model_of(
                [helper.make_node("Identity", ["x"], ["y"], name="i")],
                [("x", TensorProto.STRING, [1])],
                [("y", TensorProto.STRING, [1])],
            ),
            "its input 'x' is of the type STRING",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named_for_what_it_is(model, reason):
    with pytest.raises(ModelError) as caught:
        read_onnx(model())
    assert reason in caught.value.reason
    assert caught.value.hint


@pytest.mark.parametrize(
    ("nodes", "name"), [([_relu(), _relu("s")], "y"), ([_relu(), _relu("s", made="x")], "x")]
)
def test_a_tensor_that_is_made_twice_is_damage(nodes, name):
    with pytest.raises(ExportError, match=f"it is damaged: '{name}' is made twice"):
        read_onnx(image_model(nodes, {}))


def test_wrong_shapes_are_said_with_the_node(tmp_path):
    path = tmp_path / "m.onnx"
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], name="/stem/Conv", kernel_shape=[3, 3])]
    onnx.save(image_model(nodes, {"w": random_weight(4, 5, 3, 3)}), path)
    with pytest.raises(CaptureError, match="5"):
        trtq.load(str(path))


def test_a_checkpoint_is_refused_beside_a_file_with_weights(tmp_path):
    with pytest.raises(UsageError, match="Cannot use checkpoint with m.onnx"):
        trtq.load("m.onnx", checkpoint="w.pt")


def test_the_example_of_ids_is_below_the_rows_of_their_table(tmp_path):
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"], name="embed"),
        helper.make_node("ReduceMean", ["rows"], ["y"], axes=[1], keepdims=0),
    ]
    model = model_of(
        nodes,
        [("ids", TensorProto.INT64, ["batch", "length"])],
        [("y", FLOAT, None)],
        {"table": random_weight(3, 4)},
    )
    assert read_onnx(model).rows == {"ids": 3}
    loaded, made = written(tmp_path, model)
    assert int(loaded.graph.examples[0].max()) < 3
    assert_round_trip(model, loaded, made)


def test_pixels_last_with_an_open_batch_need_no_size(tmp_path):
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["t", "w"], ["y"], name="conv", kernel_shape=[3, 3]),
    ]
    given = [("x", FLOAT, ["batch", 16, 16, 3])]
    model = model_of(nodes, given, [("y", FLOAT, None)], {"w": random_weight(4, 3, 3, 3)})
    loaded, made = written(tmp_path, model)
    assert loaded.graph.signature.inputs[0].shape == ("batch", 16, 16, 3)
    assert_round_trip(model, loaded, made)


def test_bfloat16_constants_are_computed_in_float32(tmp_path):
    weight = helper.make_tensor(
        "w", TensorProto.BFLOAT16, [4, 3, 3, 3], random_weight(108).tolist()
    )
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Conv", ["b", "w"], ["c"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("Cast", ["c"], ["y"], to=FLOAT),
    ]
    model = image_model(nodes, {}, opset=22)
    model.graph.initializer.append(weight)
    loaded, made = written(tmp_path, model)
    assert "the constants of the file are BFLOAT16: it is computed in float32" in loaded.notes
    assert [n.op_type for n in made.graph.node] == ["Conv"]


def test_sequences_are_refused_by_name():
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"], name="pair"),
        helper.make_node("ConcatFromSequence", ["s"], ["y"], axis=1),
    ]
    with pytest.raises(ModelError, match="pair .SequenceConstruct. works on a sequence"):
        read_onnx(image_model(nodes, {}))


def test_sizes_that_nobody_gave_are_not_tried_without_limit():
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = model_of(
        nodes,
        [("x", FLOAT, ["batch", "rows", "rows", "rows"])],
        [("y", FLOAT, None)],
        {"w": random_weight(7)},
    )
    example = read_onnx(model).model_inputs(None).example
    assert example["x"].numel() <= 2 * 16**3  # no length fits: the first is kept


def doubles(*, ends=TensorProto.DOUBLE) -> onnx.ModelProto:
    """A product in float64, between inputs and outputs of a type."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], "widen", to=TensorProto.DOUBLE),
        helper.make_node("MatMul", ["wide", "w"], ["product"], "matmul"),
        helper.make_node("Max", ["product", "least"], ["masked"], "max"),
        helper.make_node("Cast", ["masked"], ["y"], "narrow", to=ends),
    ]
    weights = {
        "w": random_weight(8, 4).astype(np.float64),
        "least": np.array(np.finfo(np.float64).min),
    }
    return model_of(nodes, [("x", ends, ["n", 8])], [("y", ends, ["n", 4])], weights)


@pytest.mark.parametrize(("ends", "place"), [(TensorProto.DOUBLE, "(x, y)"), (FLOAT, "(widen)")])
def test_double_is_computed_in_float_and_said(tmp_path, ends, place):
    loaded, made = written(tmp_path, doubles(ends=ends))
    assert any("become FLOAT" in n and place in n for n in loaded.notes)
    assert [t.dtype for t in loaded.graph.signature.inputs] == ["float32"]
    held = {i.data_type for i in made.graph.initializer}
    kinds = {v.type.tensor_type.elem_type for v in (*made.graph.input, *made.graph.output)}
    assert TensorProto.DOUBLE not in held | kinds
    x = np.random.default_rng(0).standard_normal((3, 8))
    feed = {"x": x.astype(np.float64 if ends != FLOAT else np.float32)}
    (wanted,) = open_session(doubles(ends=ends)).run(None, feed)
    (got,) = open_session(made).run(None, {"x": x.astype(np.float32)})
    assert np.abs(wanted - got).max() <= 1e-5 * np.abs(wanted).max()
    quantized = trtq.quantize(
        loaded, "random:4", calib_images=4, parity_images=4, calib_cache=str(tmp_path / "cache")
    )
    assert [q.layer for q in quantized.placement.active if q.is_weight] == ["matmul"]


def test_a_weight_of_two_nodes_is_written_once(tmp_path):
    """Unrolled recurrent networks read one matrix in every step: their files must not grow."""
    loaded, made = written(tmp_path, two_images())
    assert_round_trip(two_images(), loaded, made)
    assert [list(i.dims) for i in made.graph.initializer].count([4, 3, 3, 3]) == 1
    assert [n.name for n in made.graph.node if n.op_type == "Conv"] == ["conv", "conv_1"]
    quantized = trtq.quantize(
        loaded, "random:4", calib_images=4, parity_images=4, calib_cache=str(tmp_path / "cache")
    )
    weights = [q.layer for q in quantized.placement.active if q.is_weight]
    assert weights == ["conv", "conv_1"]
    scales = [quantized.encodings.scale(f"{n}.weight") for n in weights]
    assert torch.equal(*scales)
    assert quantized.done.parity.passed
