"""Einsum, recurrent layers and the batch: the same counts from the graph and from the file."""

from __future__ import annotations

import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from trtq.cost.count import list_ops
from trtq.cost.onnx_file import list_onnx_ops
from trtq.graph.capture import capture


class Products(nn.Module):
    """An einsum of two tensors and a bidirectional LSTM of two layers."""

    def __init__(self):
        super().__init__()
        self.rows = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        scores = torch.einsum("bid,bjd->bij", x, x)
        return self.rows(x)[0].mean(-1) + scores.mean(-1)


def macs(ops):
    found = {}
    for op in ops:
        if op.macs:
            found[op.kind] = found.get(op.kind, 0) + op.macs
    return found


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_a_graph_and_its_file_count_the_same(tmp_path):
    torch.manual_seed(0)
    graph = capture(Products().eval(), torch.randn(2, 7, 6))
    # einsum: 7 * 7 * 6. LSTM: 7 steps, two directions: 4 * 5 * (6 + 5), then 4 * 5 * (10 + 5).
    wanted = {"einsum": 294, "recurrent": 7 * 2 * (220 + 300)}
    ops = list_ops(graph.module, graph.examples)
    assert macs(ops) == wanted
    assert sum(op.weights for op in ops) == 2 * (220 + 300)
    torch.onnx.export(Products().eval(), (torch.randn(1, 7, 6),), tmp_path / "m.onnx", dynamo=False)
    ops = list_onnx_ops(onnx.load(tmp_path / "m.onnx"), "m.onnx")
    assert macs(ops) == wanted
    assert sum(op.weights for op in ops) == 2 * (220 + 300)


def test_a_table_beside_the_samples_is_no_batch():
    """x [1, 3, 4] times a weight [4, 5] is 60, whatever the first axis of the table."""
    weight = numpy_helper.from_array(torch.ones(4, 5).numpy(), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], "mul"),
        helper.make_node("Identity", ["table"], ["z"], "keep"),
    ]
    value = helper.make_tensor_value_info
    inputs = [value("table", TensorProto.FLOAT, [2, 3]), value("x", TensorProto.FLOAT, [1, 3, 4])]
    outputs = [value(n, TensorProto.FLOAT, None) for n in "yz"]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert macs(list_onnx_ops(model, "m.onnx")) == {"linear": 60}
