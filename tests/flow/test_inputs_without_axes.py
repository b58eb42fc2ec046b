"""An input that is one number for all samples, before one that is not."""

from __future__ import annotations

import torch
from torch import nn

import trtq


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 4)

    def forward(self, factor, x):
        return self.layer(x) * factor


def test_the_calibrator_is_chosen_whatever_the_first_input_is(tmp_path, monkeypatch):
    monkeypatch.setenv("TRTQ_CALIB_CACHE", str(tmp_path))
    rows = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    data = [{"factor": torch.tensor(2.0), "x": row} for row in rows]
    example = {"factor": torch.tensor(2.0), "x": rows[:2]}
    model = trtq.load(Scaled().eval(), example=example)
    done = trtq.quantize(model, data, calibrator="auto", preset_quant="none")
    assert any(line.startswith("calibrator auto takes") for line in done.notes)
