"""Models and helpers for the tests of checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trtq.errors import ModelError
from trtq.models.checkpoint import load_checkpoint_


class Small(nn.Module):
    def __init__(self, classes: int = 4):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


class Holder(nn.Module):
    """A model whose only child has the name of a wrapper's child."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.add_module(name, Small())

    def forward(self, x):
        return getattr(self, self.name)(x)


def filled(model: nn.Module, seed: int = 7) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def prefixed(state, prefix):
    return {f"{prefix}{k}": v.clone() for k, v in state.items()}


def equal(model: nn.Module, state) -> bool:
    own = model.state_dict()
    return len(own) == len(state) and all(
        torch.equal(v.float(), w.float()) for v, w in zip(own.values(), state.values(), strict=True)
    )


def loaded(
    tmp_path: Path, content, model: nn.Module | None = None, *, name: str = "w.pt", **options
):
    """Save ``content``, load it into a model, and return the model and the loader's report."""
    path = tmp_path / name
    save_file({k: v.contiguous() for k, v in content.items()}, path) if name.endswith(
        ".safetensors"
    ) else torch.save(content, path)
    model = filled(model or Small(), 0)
    return model, load_checkpoint_(model, path, **options)


def refused(path: Path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_checkpoint_(Small(), path, **options)
    text = str(caught.value)
    assert "weights_only" not in text and "\n" not in text and len(text) < 1000
    return text
