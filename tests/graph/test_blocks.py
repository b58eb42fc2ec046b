"""Blocks by name and kind, and the family of a model."""

from __future__ import annotations

import pytest
from torch import nn

from tests.conftest import run_cli
from tests.support.quantize import CNN, VIT
from trtq import BlocksSpec, blocks
from trtq.graph.blocks import identify_blocks

# ---- what a model is made of -------------------------------------------------------------------


def test_blocks_by_name_and_kind():
    model = nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 4, 1),
            "attn": nn.Identity(),
            "fc": nn.Linear(4, 4),
            "norm": nn.LayerNorm(4),
        }
    )
    found = identify_blocks(model)
    assert (found.cnn, found.transformer) == (["stem"], ["attn", "fc"])
    layer = identify_blocks(nn.Sequential(nn.TransformerEncoderLayer(8, 2), nn.Conv2d(3, 3, 1)))
    assert layer.cnn == ["1"]
    assert {"0", "0.self_attn", "0.linear1"} <= set(layer.transformer)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        (CNN, "cnn"),
        (VIT, "vit"),
        ("timm:mobilenetv2_100", "mobile"),
        ("timm:mobilevit_xxs", "hybrid"),
    ],
)
def test_the_family_of_a_model(name, family):
    record = blocks(BlocksSpec(model=name, input_size=(3, 64, 64)))
    assert record.family == family
    assert "convolutions" in record.reason


def test_blocks_on_the_command_line():
    shown = run_cli("blocks", VIT, "--input-size", "3x32x32")
    assert shown.returncode == 0, shown.stderr
    assert "vit (1 convolutions" in shown.stdout
    assert "blocks.0.qkv" in shown.stdout
    assert run_cli("blocks").returncode == 2
