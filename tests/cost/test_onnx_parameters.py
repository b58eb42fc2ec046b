"""Parameters of ONNX files, whichever way the weights are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from trtq import CostSpec, cost
from trtq.cli import run_command

WEIGHT = np.arange(108, dtype=np.float32).reshape(4, 3, 3, 3) / 50  # 4 x 3 x 3 x 3 = 108 values
CODES = (WEIGHT / 0.02).astype(np.int8)


def save(
    path: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray] | None = None
) -> str:
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", [shape], [result], stored)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return str(path)


CONV = helper.make_node("Conv", ["x", "w"], ["y"])
PAIR = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["dq"]),
    helper.make_node("DequantizeLinear", ["codes", "ws", "wz"], ["w"], axis=0),
    helper.make_node("Conv", ["dq", "w"], ["y"]),
]
SCALES = {
    "s": np.array(0.02, np.float32),
    "z": np.array(0, np.int8),
    "ws": np.full(4, 0.02, np.float32),
    "wz": np.zeros(4, np.int8),
}
FILES = {
    "initializer": ([CONV], {"w": WEIGHT}),
    "half": ([CONV], {"w": WEIGHT.astype(np.float16)}),
    "Constant": (
        [helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHT)), CONV],
        {},
    ),
    "codes": (PAIR, {"codes": CODES, **SCALES}),
}


@pytest.mark.parametrize("stored", FILES)
def test_a_file_has_as_many_parameters_however_they_are_stored(stored: str, tmp_path: Path):
    nodes, constants = FILES[stored]
    record = cost(CostSpec(model=save(tmp_path / "conv.onnx", nodes, constants)))
    assert record.total.parameters == 108


def test_a_file_without_kernels_has_an_empty_table(tmp_path: Path, capsys):
    path = save(tmp_path / "flat.onnx", [helper.make_node("Flatten", ["x"], ["y"])])
    assert run_command(["cost", path, "--device", "rtx3080"]) == 0
    assert "0.000 ms on the GeForce RTX 3080 10 GB in 0 kernels" in capsys.readouterr().out
