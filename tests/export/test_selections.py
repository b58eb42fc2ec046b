"""Parity behind a selection: which of two equal values comes first says nothing."""

import pytest
import torch
from torch import nn

from trtq.errors import ExportError
from trtq.export.divergence import first_divergence
from trtq.export.parity import require_same_float
from trtq.export.to_onnx import export_onnx
from trtq.graph.capture import capture


class Queries(nn.Module):
    """Rows of the best scores; many of the scores are equal."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Linear(4, 8)
        self.score = nn.Linear(8, 1)
        self.head = nn.Linear(8, 8)

    def forward(self, x):
        rows = self.rows(x)
        scores = self.score(rows).squeeze(2).clamp(max=0.0)
        places = torch.topk(scores, 16, dim=1).indices
        picked = rows.gather(1, places.unsqueeze(2).expand(-1, -1, 8))
        return {"scores": scores, "picked": self.head(picked)}


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return capture(Queries().eval(), {"x": torch.randn(2, 64, 4)}).module


def test_ties_of_a_selection_are_no_divergence(graph):
    x = torch.randn(4, 64, 4)
    made = export_onnx(graph)
    assert first_divergence(graph, made, x) is None
    require_same_float(graph, made, x)


def test_a_selection_of_other_values_is_one(graph):
    made = export_onnx(graph)
    top = next(n for n in made.graph.node if n.op_type == "TopK")
    next(a for a in top.attribute if a.name == "largest").i = 0
    x = torch.randn(4, 64, 4)
    assert first_divergence(graph, made, x) is not None
    with pytest.raises(ExportError, match="does not compute what the model computes"):
        require_same_float(graph, made, x)


class Lengths(nn.Module):
    """Rows in the order of their integer lengths, as packed sequences are sorted."""

    def __init__(self):
        super().__init__()
        self.rows = nn.Linear(4, 8)

    def forward(self, x, lengths):
        values, places = torch.topk(lengths, 4, dim=1)
        rows = self.rows(x).gather(1, places.unsqueeze(2).expand(-1, -1, 8))
        return rows * values.unsqueeze(2).to(rows.dtype)


def test_a_selection_of_integers_is_compared():
    lengths = torch.stack([torch.randperm(16) for _ in range(2)])
    feed = {"x": torch.randn(2, 16, 4), "lengths": lengths}
    graph = capture(Lengths().eval(), feed).module
    assert first_divergence(graph, export_onnx(graph), tuple(feed.values())) is None
