"""AWQ: factors by hand, and what they save."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import trtq
from trtq.errors import TrtqError
from trtq.methods.awq import awq_factors, best_exponent, rounded_weight
from trtq.quant.formats import Format


class Encoder(nn.Module):
    """A norm with four channels that are 30 times the others, and two layers that read it."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(64, 256), nn.LayerNorm(256)
        self.left, self.right = nn.Linear(256, 64), nn.Linear(256, 64)
        self.last = nn.Linear(64, 8)
        with torch.no_grad():
            self.norm.weight[[5, 70, 130, 250]] = 30.0

    def forward(self, x):
        normed = self.norm(self.first(x))
        return self.last(self.left(normed) + self.right(normed).relu())


@pytest.fixture()
def encoder():
    torch.manual_seed(0)
    return Encoder().eval(), [torch.randn(64) for _ in range(64)]


def asked(calls, tmp_path, **more):
    model, samples = calls
    given = {"bits": "w4a16:32", "preset_quant": "none", "calib_images": 64, "min_agreement": 0}
    return trtq.quantize(model, samples, calib_cache=str(tmp_path), **{**given, **more})


def test_factors_have_inverse_ends_and_dead_channels_stay():
    magnitude = torch.tensor([9.0, 1.0, 0.0, 81.0])
    assert awq_factors(magnitude, 0.5).tolist() == pytest.approx([1.0, 1 / 3, 1.0, 3.0])
    assert awq_factors(magnitude, 0.0).tolist() == [1.0] * 4
    assert awq_factors(torch.zeros(3), 0.7).tolist() == [1.0] * 3


def test_a_block_has_a_range_of_its_own():
    rows = torch.tensor([[1.0, 1.0, 1.0, 0.0], [-1.0, -1.0, -1.0, 0.0]])
    weight = torch.tensor([[7.0, 1.4, 0.7, 0.1]])
    fmt = Format(bits=4, axis=0, block=2)
    blocks = rounded_weight(weight, fmt, rows)
    assert blocks[0, 2:].tolist() == pytest.approx([0.7, 0.1])
    assert blocks[0, 0] == pytest.approx(7.0, abs=0.6) and blocks[0, 1] != blocks[0, 2]
    whole = rounded_weight(weight, Format(bits=4, axis=0), rows)
    assert whole[0, 1] != pytest.approx(1.4, abs=0.1)  # on steps of nearly 1


def test_a_large_input_gets_its_weight_exactly():
    """Weights (7, 1.4) on steps of 1: the second, read by 100 times the input, is 0.4 off."""
    rows = torch.tensor([[1.0, 100.0], [-1.0, 50.0]])
    exponent, factors, error = best_exponent(
        rows, [(torch.tensor([[7.0, 1.4]]), Format(bits=4, axis=0))], 20
    )
    assert exponent > 0 and factors[1] > 1 > factors[0]
    assert error < 0.05


def test_nothing_to_gain_moves_nothing():
    rows, weight = torch.ones(4, 2), torch.tensor([[7.0, 3.0]])
    exponent, factors, error = best_exponent(rows, [(weight, Format(bits=4, axis=0))], 5)
    assert (exponent, factors.tolist(), error) == (0.0, [1.0, 1.0], 1.0)


@pytest.mark.parametrize("after", [(), ("gptq",)])
def test_the_answers_come_closer(after, encoder, tmp_path):
    plain = asked(encoder, tmp_path, **({"method": after} if after else {}))
    found = asked(encoder, tmp_path, method=("awq", *after))
    did = found.done.methods[0].did
    assert list(did["exponent"]) == ["left"] and did["exponent"]["left"] > 0
    assert did["error"] < 0.8
    own, other = (d.done.parity.quantization_sqnr_db for d in (found, plain))
    assert own > other + 0.5


def test_nvfp4_whose_activations_have_blocks_takes_it(encoder, tmp_path):
    plain = asked(encoder, tmp_path, bits="nvfp4")
    found = asked(encoder, tmp_path, bits="nvfp4", method=("awq",))
    assert list(found.done.methods[0].did["exponent"]) == ["left"]
    own, other = (d.done.parity.quantization_sqnr_db for d in (found, plain))
    assert own > other + 0.5


def test_it_is_for_weights_of_few_bits(encoder, tmp_path):
    with pytest.raises(TrtqError, match="no linear layer with weights of fewer than 8 bits alone"):
        asked(encoder, tmp_path, bits="w8a8", method=("awq",))
