"""What is read of an ONNX file before it is packaged: shapes, batches and scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.support.onnx_files import model_of, random_weight
from trtq.errors import UsageError
from trtq.export.onnx_file import set_metadata_
from trtq.export.ort import open_session
from trtq.package.deepstream_graph import with_one_scale, with_probabilities
from trtq.package.preprocessing import Preprocessing
from trtq.package.read import read_contents

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
PREPROCESS = {
    "input_size": [3, 8, 8],
    "mean": [0.0],
    "std": [1.0],
    "resize": None,
    "crop": None,
}


def saved(folder: Path, model: onnx.ModelProto, **metadata) -> Path:
    set_metadata_(model, metadata)
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


def node(op: str, source: str, result: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(op, source.split(), [result], result, **attributes)


def softmax(values: np.ndarray, axis: int = 1) -> np.ndarray:
    powers = np.exp(values - values.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


# ---- scores of classes -------------------------------------------------------------------------


@pytest.mark.parametrize(("opset", "shape"), [(11, [2, 5]), (11, [2, 5, 3, 4]), (13, [2, 5, 3, 4])])
def test_scores_become_probabilities_of_the_classes(tmp_path, opset, shape):
    """Up to opset 12 Softmax flattens all axes behind its own."""
    sides = [(name, FLOAT, shape) for name in ("x", "y")]
    model = model_of([node("Neg", "x", "y")], sides[:1], sides[1:], opset=opset)
    changed = with_probabilities(model, "y")
    assert changed is not None
    values = random_weight(*shape)
    session = open_session(saved(tmp_path, changed))
    (found,) = session.run(None, {"x": values})
    np.testing.assert_allclose(found, softmax(-values), rtol=1e-5)


@pytest.mark.parametrize("last", ["Identity", "Cast", "Reshape"])
def test_probabilities_that_a_node_passes_on_stay_as_they_are(last):
    """FP16 files have a Cast behind their Softmax: another one would flatten the scores."""
    nodes = [node("Softmax", "x", "p", axis=1)]
    weights = {"shape": np.array([2, 5])} if last == "Reshape" else {}
    attributes = {"to": FLOAT} if last == "Cast" else {}
    nodes.append(node(last, "p shape" if weights else "p", "y", **attributes))
    kind = HALF if last == "Cast" else FLOAT
    model = model_of(nodes, [("x", kind, [2, 5])], [("y", FLOAT, [2, 5])], weights)
    assert with_probabilities(model, "y") is None


def test_a_weight_that_is_also_an_output_keeps_its_values():
    """The graph normalises the pixels instead, and the output is what it was."""
    shape = [2, 3, 1, 1]
    model = model_of(
        [node("Conv", "x w", "y")],
        [("x", FLOAT, ["n", 3, 8, 8])],
        [("y", FLOAT, ["n", 2, 8, 8]), ("w", FLOAT, shape)],
        {"w": random_weight(*shape)},
    )
    how = Preprocessing(
        input_size=(3, 8, 8), mean=(0.5,), std=(0.2, 0.3, 0.5), resize=None, crop=None
    )
    fed = with_one_scale(model, "x", how)
    assert fed.scaling.scale == 1.0
    assert fed.model.graph.initializer[0] == model.graph.initializer[0]


# ---- inputs and outputs ------------------------------------------------------------------------


def test_deepstream_refuses_an_input_of_half_precision(tmp_path, packaged):
    sides = [(name, HALF, ["n", 3, 8, 8]) for name in ("x", "y")]
    path = saved(
        tmp_path, model_of([node("Relu", "x", "y")], sides[:1], sides[1:]), preprocess=PREPROCESS
    )
    with pytest.raises(UsageError, match="nvinfer feeds float32; the input is x float16"):
        packaged(path, "deepstream")


def test_inputs_of_independent_sizes_are_not_one_batch(tmp_path, packaged):
    """Triton would join requests along an axis that is no batch."""
    nodes = [node("Transpose", "b", "t", perm=[1, 0]), node("MatMul", "a t", "y")]
    inputs = [("a", FLOAT, ["queries", 4]), ("b", FLOAT, ["items", 4])]
    path = saved(tmp_path, model_of(nodes, inputs, [("y", FLOAT, ["queries", "items"])]))
    contents = read_contents(path)
    assert contents.batch is None
    assert contents.notes == [
        "requests are not batched: the first axes of the inputs are queries and items"
    ]
    config = (packaged(path, "triton") / "m/config.pbtxt").read_text()
    assert "max_batch_size: 0" in config
    assert "dims: [ -1, 4 ]" in config


def test_an_output_without_a_shape_is_not_taken_for_a_number(tmp_path):
    model = model_of([node("Relu", "x", "y")], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["n", 4])])
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UsageError, match=r"Cannot package m.onnx: y has no shape"):
        read_contents(saved(tmp_path, model))


def test_an_output_that_is_a_sequence_is_refused(tmp_path):
    graph = helper.make_graph(
        [node("SequenceConstruct", "x", "y")],
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_sequence_value_info("y", FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(UsageError, match="y is a sequence, not a tensor"):
        read_contents(saved(tmp_path, model))
