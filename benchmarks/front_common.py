"""What the tables of front_door.py share: one row's model, inputs and samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Door:
    """One model that is tried.

    Attributes:
        make: the module, the program, or the text of a model.
        example: one batch of its inputs; None where the model knows its own.
        data: writes samples below a folder and returns what names them; None for random ones.
        load: arguments of ``trtq.load``.
        options: arguments of ``trtq.quantize``.
    """

    make: Callable[[], nn.Module | torch.export.ExportedProgram | str]
    example: Callable[[], object] | None = None
    data: Callable[[Path], object] | None = None
    load: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def image(channels: int = 3, size: int = 64, count: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, size, size)


def pixels(size: int = 64) -> Callable[[], dict[str, torch.Tensor]]:
    """Return what makes the input of an image model of transformers."""
    return lambda: {"pixel_values": image(3, size)}


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return make


def torchvision_model(group: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import importlib

        module = importlib.import_module(f"torchvision.models.{group}".rstrip("."))
        return getattr(module, name)(weights=None, **options)

    return make


def hf(kind: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**options))

    return make


def ids(length: int = 16, vocabulary: int = 100) -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.randint(0, vocabulary, (2, length)),
        "attention_mask": torch.ones(2, length, dtype=torch.int64),
    }


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TEXT = {**SMALL, "vocab_size": 100, "max_position_embeddings": 64}
VISION = {**SMALL, "image_size": 64, "patch_size": 16}
