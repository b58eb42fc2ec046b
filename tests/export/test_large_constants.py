"""Constants that a file computes: no file makes the walker allocate more than it may hold."""

from __future__ import annotations

import resource

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtq.onnx_walk import scopes

HUGE = 1 << 40


def stored(name: str, value: object, dtype: type = np.int64) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value, dtype), name)


def model_of(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    output: str,
    opset: int = 17,
    domain: str = "",
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        constants,
    )
    opsets = [helper.make_opsetid(domain, opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


COMPUTED = {
    "ConstantOfShape": (["size"], [stored("size", [HUGE])]),
    "Expand": (["one", "size"], [stored("one", [1], np.float32), stored("size", [HUGE])]),
    "Tile": (["one", "size"], [stored("one", [1], np.float32), stored("size", [HUGE])]),
    "Range": (["from", "to", "by"], [stored("from", 0), stored("to", HUGE), stored("by", 1)]),
    "Pad": (["one", "pads"], [stored("one", [1], np.float32), stored("pads", [HUGE, 0])]),
    "MatMul": (
        ["column", "row"],
        [
            stored("column", np.ones((1 << 17, 1)), np.float32),
            stored("row", np.ones((1, 1 << 17)), np.float32),
        ],
    ),
}


@pytest.fixture
def little_memory():
    """An address space in which the constants of these tests do not fit."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (32 << 30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", COMPUTED)
@pytest.mark.usefixtures("little_memory")
def test_a_result_of_terabytes_is_no_constant(kind):
    names, constants = COMPUTED[kind]
    model = model_of([helper.make_node(kind, names, ["y"])], constants, output="y")
    assert scopes(model)[0].value("y") is None


def test_small_results_are_those_of_onnx_runtime():
    size, row = stored("size", [3, 2]), stored("row", [1.5, -2], np.float32)
    model = model_of([helper.make_node("Expand", ["row", "size"], ["y"])], [size, row], output="y")
    (wanted,) = ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    ).run(None, {"x": np.zeros((1, 4), np.float32)})
    np.testing.assert_array_equal(scopes(model)[0].value("y"), wanted)
