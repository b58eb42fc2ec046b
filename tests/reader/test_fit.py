"""Examples and samples against the inputs that a file declares."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import trtq
from tests.support.onnx_files import detector, model_of, random_weight, text_encoder, two_images
from trtq.errors import CaptureError, DataError

FLOAT = TensorProto.FLOAT
LEFT, RIGHT = (torch.randn(2, 3, 8, 8) for _ in range(2))


def loaded(tmp_path, model, example, **arguments):
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    return trtq.load(str(path), example=example, **arguments)


def refused(tmp_path, model, example):
    with pytest.raises(CaptureError) as caught:
        loaded(tmp_path, model, example)
    return str(caught.value)


def test_an_input_that_the_file_does_not_have(tmp_path):
    text = refused(tmp_path, two_images(), {"lef": LEFT, "right": RIGHT})
    assert text == (
        "The ONNX model has no input lef: its inputs are left, right. Did you mean left?"
    )


def test_the_only_input_has_the_name_of_the_file(tmp_path):
    text = refused(tmp_path, detector(), {"imags": torch.randn(1, 3, 64, 64)})
    assert "no input imags: its inputs are images. Did you mean images?" in text


def test_a_missing_input(tmp_path):
    text = refused(tmp_path, two_images(), {"left": LEFT})
    assert text == (
        "The input right of the ONNX model is missing: given are left. Give all of left, right."
    )


def test_a_wrong_number_of_inputs(tmp_path):
    text = refused(tmp_path, two_images(), LEFT)
    assert text == "Cannot call the model with 1 inputs: it has 2: left, right."


def test_another_size(tmp_path):
    text = refused(tmp_path, two_images(), {"left": LEFT[:, :2], "right": RIGHT})
    assert text == (
        "The example of the input left does not fit the ONNX model: it is [2, 2, 8, 8], "
        "expected [batch, 3, 8, 8]."
    )


def test_samples_with_a_batch_axis(tmp_path):
    text = refused(tmp_path, detector(), torch.randn(2, 1, 3, 64, 64))
    assert "expected [1, 3, 64, 64]. Data hold one sample an item, without a batch axis." in text


def test_another_kind_of_numbers(tmp_path):
    text = refused(tmp_path, two_images(), {"left": LEFT.long(), "right": RIGHT})
    assert text == (
        "The input left of the ONNX model is float32: its example is int64. Give values of the "
        "type float32."
    )


def test_what_is_no_tensor(tmp_path):
    text = refused(tmp_path, two_images(), {"left": "left.png", "right": RIGHT})
    assert text == "The input left of the ONNX model is a tensor: given is a str."


def test_a_file_with_a_fixed_batch_takes_one_of_two_samples(tmp_path):
    model = loaded(tmp_path, detector(), torch.randn(2, 3, 64, 64))
    assert model.graph.signature.inputs[0].shape == (1, 3, 64, 64)


def test_samples_of_a_file_with_a_fixed_batch(tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(detector(), path)
    samples = [np.random.rand(3, 64, 64).astype(np.float32) for _ in range(4)]
    done = trtq.quantize(str(path), samples, calibrator="max", preset_quant="none")
    assert done.done.parity.passed


def test_one_sample_is_traced_as_two_where_the_batch_is_open(tmp_path):
    model = loaded(tmp_path, two_images(), (LEFT[:1], RIGHT[:1]))
    assert model.graph.dynamic_batch
    assert [len(e) for e in model.graph.examples] == [2, 2]


def test_float64_becomes_the_type_of_the_file(tmp_path):
    model = loaded(tmp_path, two_images(), (LEFT.double(), RIGHT))
    assert [t.dtype for t in model.graph.signature.inputs] == ["float32", "float32"]


def test_ids_of_another_width_become_those_of_the_file(tmp_path):
    file = text_encoder()
    ids = {i.name: torch.ones(1, 5, dtype=torch.int32) for i in file.graph.input}
    model = loaded(tmp_path, file, ids)
    assert {t.dtype for t in model.graph.signature.inputs} == {"int64"}


def test_an_input_without_an_axis_for_samples_is_refused(tmp_path):
    nodes = [helper.make_node("ReduceSum", ["state", "first"], ["s"], keepdims=0)]
    nodes.append(helper.make_node("MatMul", ["x", "w"], ["c"], name="linear"))
    nodes.append(helper.make_node("Add", ["c", "s"], ["y"]))
    model = model_of(
        nodes,
        [("x", FLOAT, ["batch", 4]), ("state", FLOAT, [2, 5, 3])],
        [("y", FLOAT, None)],
        {"w": random_weight(4, 3), "first": np.array([0, 1])},
        check=False,
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(DataError) as caught:
        trtq.quantize(str(path), "random:4")
    assert "its input state float32 [2, 5, 3] has 2 in its first axis, and no axis" in str(
        caught.value
    )
