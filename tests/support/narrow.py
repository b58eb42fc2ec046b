"""A small network of linear layers, and samples, for formats that only such layers have."""

from __future__ import annotations

import torch
from torch import nn


class Layers(nn.Module):
    """Four linear layers; the two in the middle are ``size`` by ``size``."""

    def __init__(self, size: int = 256):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(64, size)
        self.second = nn.Linear(size, size)
        self.third = nn.Linear(size, size)
        self.last = nn.Linear(size, 10)

    def forward(self, x):
        x = torch.relu(self.first(x))
        return self.last(torch.relu(self.third(nn.functional.gelu(self.second(x)))))


def vectors(count: int = 64) -> list[torch.Tensor]:
    """Return samples whose features differ in size and depend on each other."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(64, 64, generator=generator)
    size = torch.linspace(0.1, 2.0, 64)
    return [size * (torch.randn(64, generator=generator) @ mix) / 8 for _ in range(count)]
