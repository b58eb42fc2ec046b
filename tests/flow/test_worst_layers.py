"""Layers are ranked at the width that they have, whatever its form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trtq
from trtq.flow.finetune_checks import worst_layers


@pytest.mark.parametrize("bits", ["fp8", "w4a16:16", "w8a8"])
def test_layers_of_every_format_are_ranked_at_their_own_width(bits, tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path))
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4))).eval()
    rows = torch.randn(40, 32)
    analysis = trtq.analyze(net, rows, metric="l2", bits=("w4a4", bits))
    widths = {f"{i}": bits for i in range(4)}
    done = trtq.quantize(net, rows, layer_bits=widths, preset_quant="none")
    lines: list[str] = []
    chosen = worst_layers(analysis, 0.5, done.encodings, lines.append)
    losses = {layer.name: layer.loss[bits] for layer in analysis.layers}
    assert chosen == set(sorted(losses, key=lambda n: -losses[n])[:2])
    assert len(lines) == 1 and "2 of 4 layers are trained" in lines[0]
