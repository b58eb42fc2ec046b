"""Forms that a captured graph has in one way only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trtq import ops
from trtq.errors import CaptureError
from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.graph.axes import Open, single
from trtq.graph.capture import capture


class Weighted(nn.Module):
    """A mean with weights: a linear whose weight is a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.arange(3.0))

    def forward(self, x):
        return nn.functional.linear(x.mean((2, 3)).softmax(1), self.places)


def test_a_linear_whose_weight_is_a_vector_is_a_matmul():
    graph = capture(Weighted().eval(), (3, 8, 8)).module
    assert "matmul" in {ops.of(n).name for n in graph.graph.nodes}
    made = export_onnx(graph)
    assert "Transpose" not in {n.op_type for n in made.graph.node}
    x = torch.randn(2, 3, 8, 8)
    (got,) = open_session(made).run(None, {"input": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), graph(x))


def test_a_fixed_batch_is_cut_along_every_axis_of_its_name():
    feed = (torch.zeros(2, 5), torch.zeros(3, 2, 4))
    opened = Open(({0: "batch"}, {1: "batch"}), {})
    assert [t.shape for t in single(feed, opened)] == [(1, 5), (3, 1, 4)]


def test_samples_with_nan_are_named():
    with pytest.raises(CaptureError, match="samples hold NaN or infinity in the input left"):
        capture(nn.Identity(), {"left": torch.full((2, 3), float("nan"))})
