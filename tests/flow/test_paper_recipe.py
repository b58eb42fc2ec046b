"""Recipes of papers: each component has to pay on samples that did not calibrate it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

import trtq
from trtq.errors import UsageError
from trtq.testing.models import tiny_cnn, tiny_vit

FEW = {"calib_images": 32, "parity_images": 8}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path / "cache"))


def images(count: int, *, tail: float = 0.0) -> list[torch.Tensor]:
    """Pictures; with a tail, one pixel in 1,600 is so large, and the answer depends on it."""
    side = 40 if tail else 32
    made = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1))
    if tail:
        made[:, :, 7, 9] *= tail
    return list(made)


class Peaks(nn.Module):
    """Scores that follow the largest values of the image."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 1)
        self.second = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).amax((2, 3)))


def by_name(quantized) -> dict:
    record = quantized.recipe
    assert record is not None
    return {step.name: step for step in record.steps}


def test_clipping_that_cuts_what_the_answer_depends_on_is_left_out():
    quantized = trtq.quantize(
        Peaks().eval(), images(32, tail=20.0), recipe_quant="qaof", input_size=(3, 40, 40), **FEW
    )
    steps = by_name(quantized)
    assert not steps["percentile clipping"].kept
    assert quantized.done.options.calibrator == "mse"
    assert quantized.recipe.held_out == 8
    kept = [s.distance for s in quantized.recipe.steps if s.kept]
    assert kept == sorted(kept, reverse=True)
    dropped = [s for s in quantized.recipe.steps if not s.kept and s.distance is not None]
    assert all(s.distance > kept[-1] for s in dropped)
    (note,) = [n for n in quantized.notes if n.startswith("recipe qaof: distance")]
    assert re.search(r"on 8 held-out samples: plain quantization at w8a8 [\d.e-]+; first and", note)
    assert "percentile clipping: " in note and "(left out)" in note


def test_components_for_attention_are_tried_on_a_transformer_only():
    plain = by_name(trtq.quantize(tiny_cnn().eval(), images(32), recipe_quant="qaof", **FEW))
    attention = ("clamped queries, keys and values", "integer-only softmax")
    for name in attention:
        assert plain[name].distance is None
        assert plain[name].reason == "it changes nothing on this model"
    vit = by_name(trtq.quantize(tiny_vit().eval(), images(32), recipe_quant="qaof", **FEW))
    for name in attention:
        assert vit[name].distance is not None
    assert vit["first and last layer in float"].weight_bytes > (
        vit["plain quantization at w8a8"].weight_bytes
    )


def test_a_mix_of_widths_has_the_bytes_of_one_width_and_is_no_farther():
    quantized = trtq.quantize(tiny_vit().eval(), images(32), recipe_quant="energy-aware", **FEW)
    steps = by_name(quantized)
    plain = steps["plain quantization at w6a6"]
    for name in ("widths by the percentile rule", "widths by an exact program"):
        step = steps[name]
        if step.distance is None:
            assert re.search(r"above w6a6|widths of w6a6", step.reason), step.reason
        else:
            assert step.weight_bytes <= plain.weight_bytes * 1.02
        if step.kept:
            assert step.distance <= plain.distance
    assert steps["ranking-aware ranges of queries and keys"].distance is not None


def test_the_width_that_was_asked_for_is_the_one_that_is_compared_with(tmp_path):
    quantized = trtq.quantize(
        tiny_cnn().eval(), images(32), recipe_quant="energy-aware", bits="w5a5", **FEW
    )
    assert "plain quantization at w5a5" in by_name(quantized)
    record = quantized.save(tmp_path / "out")
    assert [s.name for s in record.recipe.steps] == list(by_name(quantized))
    assert record.spec["recipe_quant"] == "energy-aware"


@pytest.mark.parametrize(
    ("options", "count", "text"),
    [
        ({"recipe_quant": "qaof"}, 7, "it holds samples out, and .* has 7, expected at least 8"),
        (
            {"recipe_quant": "qaof", "preset_quant": "vit"},
            32,
            "Give preset_quant or recipe_quant, not both",
        ),
        (
            {"recipe_quant": "energy-aware", "layer_bits": {"0": "w4a8"}},
            32,
            "it chooses the widths of layers, and an allocation has them",
        ),
    ],
)
def test_what_a_recipe_cannot_be_tried_with(options, count, text):
    with pytest.raises(UsageError, match=text):
        trtq.quantize(tiny_cnn().eval(), images(count), **options, **FEW)


@pytest.mark.parametrize("exact", ["smooth", "qads"])
def test_an_exact_method_keeps_what_an_approximation_before_it_computes(exact):
    """The check of an exact method compares with the graph before it, not with the float model."""
    quantized = trtq.quantize(
        tiny_vit().eval(),
        images(16),
        method=["integer-softmax", exact],
        method_arg={"integer-softmax.segments": 1},
        preset_quant="none",
        **FEW,
    )
    assert [m.name for m in quantized.done.methods] == ["integer-softmax", exact]
