"""Which tensors are quantized, and which stay in float."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trtq.graph.capture import capture
from trtq.quant.placement import place
from trtq.testing.models import TinyCNN, TinyViT, tiny_vit

SIZE = (3, 32, 32)


def test_placement_follows_the_rules():
    found = {q.name: q for q in place(capture(TinyCNN().eval(), SIZE).module).quantizers}
    assert found["add.residual"].float_reason is None
    assert found["stem.weight"].format.axis == 0
    assert found["depthwise.input"].source.target is not torch.ops.aten.pad.default
    assert [n for n in found if n.endswith(".residual")] == ["add.residual"]
    vit = {q.name: q for q in place(capture(TinyViT().eval(), SIZE).module).quantizers}
    assert "gain nothing" in vit["blocks.0.add.residual"].float_reason
    assert "blocks.0.softmax.output" in vit
    assert "blocks.0.qk.lhs" in vit


def test_high_precision_patterns():
    graph = capture(TinyCNN().eval(), SIZE).module
    kept = {
        q.name for q in place(graph, high_precision=["@first", "head"]).quantizers if q.float_reason
    }
    assert kept == {"stem.input", "stem.weight", "head.input", "head.weight"}
    one_side = {
        q.name for q in place(graph, high_precision=["conv1.weight"]).quantizers if q.float_reason
    }
    assert one_side == {"conv1.weight", "conv1.input"}
    with pytest.raises(
        Exception, match="--high-precision 'haed' matches no layer. Did you mean head"
    ):
        place(graph, high_precision=["haed"])


def test_same_padding_and_einsum_are_seen_by_the_placement():
    class Spelt(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 4, padding="same", bias=False)
            self.bn = nn.BatchNorm2d(8)
            self.mix = nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            return torch.einsum("nchw,cd->ndhw", self.bn(self.conv(x)), self.mix).mean((2, 3))

    captured = capture(Spelt().eval(), SIZE)
    assert captured.passes["batch norm folded"] == 1
    found = {q.name: q.float_reason for q in place(captured.module).quantizers}
    assert found["conv.input"] is None
    assert "write it as matmul" in found["einsum.lhs"]  # what it multiplies is no weight


def test_a_product_with_a_sum_in_one_call_is_listed_as_float():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, 4)

        def forward(self, x):
            y = self.head(x.mean((2, 3)))[:, :, None]
            return torch.baddbmm(y @ y.mT, y, y.mT).flatten(1)

    found = {q.name: q.float_reason for q in place(capture(Sum().eval(), SIZE).module).quantizers}
    assert any(
        why is not None and "write them as matmul and add" in why for why in found.values()
    ), found


def test_transposed_convolutions_are_listed_as_float():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 4, 2, stride=2)).eval()
    reasons = {q.name: q.float_reason for q in place(capture(model, SIZE).module).quantizers}
    assert "computes transposed convolutions in float" in reasons["1.weight"]
    assert reasons["0.weight"] is None


def test_an_attention_stays_in_float_as_a_whole():
    graph = capture(tiny_vit().eval(), SIZE).module
    reasons = {
        q.name: q.float_reason for q in place(graph, high_precision=["blocks.0.av"]).quantizers
    }
    for name in ("blocks.0.qk.lhs", "blocks.0.qk.rhs"):
        assert (
            reasons[name]
            == "blocks.0.softmax.output remains in float, and an attention is one kernel, all "
            "INT8 or none"
        )
    assert reasons["blocks.1.qk.lhs"] is None
    assert reasons["blocks.0.qkv.input"] is None


class Offsets(nn.Module):
    """Keypoints [N, 3, 2, A] and anchors [2, 1, 2, A] in one sum, as many anchors as samples."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.register_buffer("shift", torch.ones(2, 6, 1, 1))

    def forward(self, x):
        y = self.conv(x)
        return y.unsqueeze(1) + self.conv(x).mean((2, 3), keepdim=True).sum(0) + self.shift


def test_an_add_of_an_open_and_a_fixed_size_does_not_fix_the_batch():
    """YOLOv8-pose: the example has as many samples as its keypoints have coordinates."""
    graph = capture(Offsets().eval(), SIZE).module
    place(graph)
    (image,) = (n for n in graph.graph.nodes if n.op == "placeholder")
    assert isinstance(image.meta["val"].shape[0], torch.SymInt)
    assert not image.meta["val"].shape[0].node.expr.is_number
    with torch.no_grad():
        assert graph(torch.randn(5, *SIZE)).shape == (5, 2, 6, 32, 32)
