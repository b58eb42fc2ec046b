"""A small classifier, and the file that a factory of it is in."""

from __future__ import annotations

import torch
from torch import nn

FACTORY = "\n\ndef model():\n    torch.manual_seed(0)\n    return Net()\n"


class Net(nn.Module):
    num_classes = 4

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(x)).flatten(1))
