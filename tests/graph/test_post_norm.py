"""Norms that layers and an add read: factors move into the layers, the add gets them back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.workbench import bench_of
from trtq.export.ort import open_session
from trtq.export.to_onnx import export_onnx
from trtq.graph.capture import capture
from trtq.graph.post_norm import is_restore, restores_nothing
from trtq.methods.pairs import find_pairs, fold_factors
from trtq.methods.registry import get_method


class PostNorm(nn.Module):
    """One block with the norm behind the add; ``read`` says what reads the norm."""

    def __init__(self, read: str = "layer and add") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read = read
        self.patch = nn.Conv2d(3, 16, 8, 8)
        self.norm = nn.LayerNorm(16)
        self.fc1, self.fc2, self.head = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.norm.weight[3] = 60.0  # an outlier channel, as trained encoders have them

    def forward(self, x):
        y = self.norm(self.patch(x).flatten(2).transpose(1, 2))
        z = self.fc2(self.fc1(y).relu())
        if self.read == "layer alone":
            return self.head(z.mean(1))
        z = z + y if self.read == "layer and add" else z * y.sigmoid()
        return self.head(z.mean(1))


def _restores(graph):
    return [n for n in graph.graph.nodes if is_restore(n)]


@pytest.mark.parametrize(
    ("read", "count"), [("layer and add", 1), ("layer alone", 0), ("layer and product", 0)]
)
def test_a_place_is_held_where_an_add_reads_the_norm(read, count):
    graph = capture(PostNorm(read).eval(), (3, 32, 32)).module
    found = _restores(graph)
    assert len(found) == count
    assert all(restores_nothing(graph, n) for n in found)


def test_ones_are_in_no_file_and_factors_are():
    model = PostNorm().eval()
    captured = capture(model, (3, 32, 32))
    assert "Mul" not in {n.op_type for n in export_onnx(captured.module).graph.node}
    context = bench_of(model)
    pair = next(p for p in find_pairs(context)[0] if p.restore is not None)
    assert [str(c.meta["trtq_name"]) for c in pair.consumers] == ["fc1"]
    x = next(context.images(2))[0]
    before = context.graph(x).detach()
    fold_factors(context, pair, torch.linspace(0.5, 4.0, 16))
    torch.testing.assert_close(context.graph(x).detach(), before, atol=1e-4, rtol=1e-4)
    file = export_onnx(context.graph)
    assert [n.op_type for n in file.graph.node].count("Mul") == 1
    found = open_session(file).run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(found, before.numpy(), atol=1e-3)


def test_smoothing_takes_the_place_and_says_so():
    context = bench_of(PostNorm())
    method = get_method("smooth")
    report = method.run(context, method.values({}))
    assert report["restored"] == ["norm.layer_norm"]
    assert report["label"] == "ops"
    (mul,) = _restores(context.graph)
    assert not restores_nothing(context.graph, mul)


def test_repq_leaves_it():
    """It moves the norm's shift, too, which a Mul does not give back."""
    context = bench_of(PostNorm())
    x = next(context.images(2))[0]
    before = context.graph(x).detach()
    method = get_method("repq")
    if method.not_applicable_reason(context) is None:
        method.run(context, method.values({}))
    torch.testing.assert_close(context.graph(x).detach(), before, atol=1e-4, rtol=1e-4)
