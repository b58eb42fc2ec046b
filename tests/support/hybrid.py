"""A small net with every kind of layer, and settings that reach every method."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.last(x))


class Hybrid(nn.Module):
    """A convolution, a depthwise one, a residual add, an attention and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.deep = nn.Conv2d(16, 16, 3, groups=16, padding=1)
        self.patch, self.block, self.head = nn.Conv2d(16, 32, 4, 4), Block(), nn.Linear(32, 10)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.deep(x)) + x
        return self.head(self.block(self.patch(x).flatten(2).transpose(1, 2)).mean(1))


def images(count: int = 16) -> torch.Tensor:
    """Return samples of the net, the same each time."""
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def hybrid() -> Hybrid:
    """Return the net with the same random weights each time."""
    torch.manual_seed(0)
    return Hybrid().eval()


SETTINGS = {
    "smooth, max": {},
    "mse, shifted scales": {"bits": "w4a4", "method": ("repq",), "calibrator": "mse"},
    "channel scales": {"method": ("qads",), "calibrator": "entropy"},
    "ranking": {"method": ("ranking",), "calibrator": "ema"},
    "learned rounding": {"bits": "w4a8", "method": ("bias-correction", "reconstruct")},
    "learned by the Fisher information": {"bits": "w4a8", "method": ("reconstruct",)},
    "learned at 8 bits": {"method": ("refine",)},
    "integer softmax": {"method": ("integer-softmax",), "calibrator": "percentile"},
}


def options(name: str) -> dict[str, object]:
    """Return the options of :func:`trtq.quantize` for a setting."""
    given = dict(SETTINGS[name])
    if "method" in given:
        given["preset_quant"] = "none"
    learns = {"reconstruct", "refine"} & {*given.get("method", ())}
    if learns:
        given["method_arg"] = {f"{method}.steps": 3 for method in learns}
    if "Fisher" in name:
        given["method_arg"]["reconstruct.rank"] = 2
    return given
