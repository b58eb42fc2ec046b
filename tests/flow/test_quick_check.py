"""What the quick check says of a model with several outputs."""

import torch
from torch import nn

import trtq


class Two(nn.Module):
    """An output of one layer, and one of several narrow ones behind it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.rest = nn.Sequential(*(nn.Linear(16, 16, bias=False) for _ in range(6)))

    def forward(self, x):
        near = self.first(x)
        return {"near": near, "far": self.rest(near)}


def test_the_output_that_fails_is_named_with_its_own_figures(tmp_path):
    torch.manual_seed(0)
    model = trtq.load(Two().eval(), example=torch.randn(2, 8))
    quantized = trtq.quantize(
        model,
        [torch.randn(8) for _ in range(8)],
        bits="w2a2",
        preset_quant="cnn",
        calib_images=8,
        parity_images=8,
        calib_cache=str(tmp_path),
    )
    first = next(n for n in quantized.notes if "quick check" in n)
    tried = quantized.preset.tried[0]
    assert tried.sqnr_db < 15
    assert f"found SQNR {tried.sqnr_db:.2f} dB" in first
    assert "(output far)" in first
