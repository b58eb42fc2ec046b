"""Factors that move through an attention: from the layer of its values into the one behind it."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import trtq
from tests.support.workbench import bench_of
from trtq.graph.naming import node_name
from trtq.methods.pairs import fold_factors
from trtq.methods.value_pairs import value_pairs

WIDTH, HEADS = 16, 4


class Attention(nn.Module):
    """Tokens of an image, an attention, a layer behind it, and their mean.

    Args:
        kind: how values come to the attention.
    """

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.stem = nn.Conv2d(3, WIDTH, 8, stride=8)
        self.qkv, self.value = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.few = nn.Linear(WIDTH, WIDTH // HEADS)
        self.torchs = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        tokens = self.stem(x).flatten(2).transpose(1, 2)
        if self.kind == "torch":
            return self.torchs(tokens, tokens, tokens, need_weights=False)[0].mean(1)
        n, t, _ = tokens.shape
        q, k, v = self.qkv(tokens).reshape(n, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4).unbind(0)
        if self.kind in ("own", "read twice"):
            v = self.value(tokens).reshape(n, t, HEADS, -1).transpose(1, 2)
        elif self.kind == "shared":  # one head of values for all
            v = self.few(tokens)[:, None].expand(-1, HEADS, -1, -1)
        elif self.kind == "activated":
            v = v.relu()
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        out = (weights @ v).transpose(1, 2).reshape(n, t, -1)
        extra = v.mean((1, 2, 3))[:, None] if self.kind == "read twice" else 0.0
        return self.proj(out).mean(1) + extra


@pytest.mark.parametrize(
    ("kind", "producer", "rows"),
    [
        ("fused", "qkv", range(2 * WIDTH, 3 * WIDTH)),
        ("own", "value", range(WIDTH)),
        ("torch", "torchs", range(2 * WIDTH, 3 * WIDTH)),
        ("shared", None, None),
        ("activated", None, None),
        ("read twice", None, None),
    ],
)
def test_factors_move_only_where_the_function_stays(kind, producer, rows):
    torch.manual_seed(0)
    context = bench_of(Attention(kind))
    pairs = value_pairs(context)
    names = [node_name(p.producer).removesuffix("_weight") for p in pairs]
    assert names == ([] if producer is None else [producer])
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        before = context.graph(x)
        for pair in pairs:
            assert pair.rows.tolist() == list(rows)
            fold_factors(context, pair, torch.rand(pair.channels) * 9 + 0.1)
        after = context.graph(x)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)
    assert bool(context.folded) == bool(pairs)


@pytest.mark.parametrize(
    ("name", "count"),
    [("deit_tiny_patch16_224", 12), ("swin_tiny_patch4_window7_224", 12), ("mobilevit_xxs", 9)],
)
def test_every_attention_of_known_networks_has_a_pair(name, count):
    torch.manual_seed(0)
    size = 224 if name.startswith(("deit", "swin")) else 64
    images = torch.randn(2, 3, size, size)
    context = bench_of(timm.create_model(name).eval(), images, size=size)
    pairs = value_pairs(context)
    assert len(pairs) == count
    with torch.no_grad():
        before = context.graph(images)
        for pair in pairs:
            fold_factors(context, pair, torch.rand(pair.channels) * 9 + 0.1)
        after = context.graph(images)
    assert float((before - after).abs().max()) < 1e-4 * float(before.abs().max())


def test_smoothing_reaches_the_layer_behind_an_attention(tmp_path):
    """Three channels of the values are 100 times the others: they own the range behind, too."""
    torch.manual_seed(0)
    net = Attention("fused").eval()
    with torch.no_grad():
        rows = [2 * WIDTH + 1, 2 * WIDTH + 6, 2 * WIDTH + 11]
        net.qkv.weight[rows] *= 100
        net.qkv.bias[rows] *= 100
        net.proj.weight[:, [1, 6, 11]] /= 100
    given = {"preset_quant": "none", "attention": "int8", "calib_cache": str(tmp_path)}
    samples = [torch.randn(3, 32, 32) for _ in range(32)]

    def made(**more):
        model = trtq.load(net, input_size=(3, 32, 32))
        return trtq.quantize(model, samples, calib_images=32, **given, **more).done

    plain, smooth = made(), made(method=("smooth",))
    assert "proj" in smooth.methods[0].did["strength"]
    assert smooth.parity.quantization_sqnr_db > plain.parity.quantization_sqnr_db + 6.0
