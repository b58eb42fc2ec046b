"""The models of the golden files: small, seeded, and none of them needs a download."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from trtq.testing.models import tiny_cnn, tiny_vit


@dataclass(frozen=True)
class Model:
    """One model and the words that name it on a command line.

    Attributes:
        name: MODEL, as a user types it.
        size: of the input.
        arguments: of the factory, ``K=V``.
        weights: whether it gets a checkpoint; without one its weights are random and seeded.
        outliers: factors on single tensors of the checkpoint, by name.
        data: ``images`` in class folders, or ``scenes`` with masks.
    """

    name: str
    size: int = 32
    arguments: tuple[str, ...] = ()
    weights: bool = True
    outliers: tuple[tuple[str, float], ...] = ()
    data: str = "images"

    @property
    def words(self) -> list[str]:
        """MODEL with the arguments of its factory and the size of its input."""
        size = ["--input-size", f"3x{self.size}x{self.size}"]
        return [self.name, *(w for a in self.arguments for w in ("--model-arg", a)), *size]

    @property
    def normalization(self) -> list[str]:
        """The words for models that bring no normalization of their own."""
        return [] if self.name.startswith("timm:") else ["--preset", "imagenet"]


HERE = "tests.golden.models"
SMALL_VIT = ("img_size=32", "patch_size=8", "depth=2", "embed_dim=48", "num_heads=3")
MODELS = {
    "cnn": Model(f"{HERE}:cnn"),
    "resnet": Model("timm:test_resnet", size=64, arguments=("num_classes=10",), weights=False),
    "mobilenet": Model(f"{HERE}:mobilenet"),
    "convnext": Model("timm:test_convnext", size=64, arguments=("num_classes=10",)),
    "vit": Model(f"{HERE}:vit", outliers=(("patch.bias", 400.0), ("blocks.0.qkv.weight", 4.0))),
    "deit": Model("timm:deit_tiny_distilled_patch16_224", arguments=(*SMALL_VIT, "num_classes=10")),
    "swin": Model(f"{HERE}:swin"),
    "mobilevit": Model(f"{HERE}:mobilevit"),
    "segmenter": Model(f"{HERE}:segmenter", data="scenes"),
    "unusual": Model(f"{HERE}:unusual"),
}


def cnn() -> nn.Module:
    """Return a residual block, a depthwise convolution with uneven padding, ReLU6, a linear."""
    return tiny_cnn()


def mobilenet() -> nn.Module:
    """Return inverted residuals with hard swish, one with squeeze and excitation."""
    from timm.layers import SqueezeExcite
    from timm.models._efficientnet_blocks import InvertedResidual

    squeeze = partial(SqueezeExcite, gate_layer="hard_sigmoid", rd_ratio=0.25)
    block = partial(InvertedResidual, act_layer=nn.Hardswish)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.Hardswish(),
        block(16, 16, exp_ratio=2.0),
        block(16, 24, stride=2, exp_ratio=3.0),
        block(24, 24, exp_ratio=3.0),
        block(24, 32, dw_kernel_size=5, exp_ratio=3.0, se_layer=squeeze),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    net.num_classes = 10
    return net


def vit() -> nn.Module:
    """Return a transformer of two blocks; its checkpoint gives it outliers."""
    return tiny_vit()


def swin() -> nn.Module:
    """Return a transformer with shifted windows."""
    from timm.models.swin_transformer import SwinTransformer

    return SwinTransformer(
        img_size=32,
        patch_size=4,
        window_size=4,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(2, 3),
        num_classes=10,
    )


def mobilevit() -> nn.Module:
    """Return convolutions around a transformer that works on unfolded patches."""
    from timm.models.mobilevit import MobileVitBlock

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1),
        nn.SiLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16),
        nn.SiLU(),
        nn.Conv2d(16, 24, 1),
        MobileVitBlock(24, transformer_dim=32, transformer_depth=2, num_heads=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


class Segmenter(nn.Module):
    """Down with a dilated convolution at the bottom, up with a concatenation of both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 3
        self.enter = nn.Sequential(nn.Conv2d(3, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.down = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(12, 24, 3, 1, 2, dilation=2))
        self.bottom = nn.Sequential(nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, 1, 1))
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.join = nn.Sequential(nn.Conv2d(24, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Conv2d(12, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores of classes for every pixel."""
        high = self.enter(x)
        low = self.bottom(self.down(high))
        low = nn.functional.interpolate(low, scale_factor=0.5, mode="bilinear")
        low = nn.functional.interpolate(low, scale_factor=2.0, mode="nearest")
        return self.head(torch.relu(self.join(torch.cat([self.up(low), high], 1))))


def segmenter() -> nn.Module:
    """Return a :class:`Segmenter`."""
    return Segmenter()


class Unusual(nn.Module):
    """Grouped and transposed convolutions, an LSTM, borrowed ops, three outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = 4
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=2)
        self.norm = nn.InstanceNorm2d(16, affine=True)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.shuffled = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        self.recurrent = nn.LSTM(16, 12, batch_first=True, bidirectional=True)
        self.line = nn.Conv1d(24, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)
        self.mask = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return scores of classes, and two outputs that trtq leaves out."""
        y = self.grouped(torch.relu(self.stem(x))) * 3e4  # beyond what FP16 holds
        y = nn.functional.elu(self.norm(y))
        wide = nn.functional.leaky_relu(self.up(y), 0.1)
        low = nn.functional.channel_shuffle(self.shuffled(wide), 2)
        y = torch.cat([low, nn.functional.max_pool2d(y[:, :8], 3, 1, 1)], 1)
        y = nn.functional.avg_pool2d(y, 4).flatten(2).transpose(1, 2)
        tokens = self.recurrent(y)[0].transpose(1, 2)
        best = self.line(tokens).topk(4)[0].mean(2)
        mask = nn.functional.interpolate(self.mask(wide), size=(16, 16), mode="nearest")
        scores = self.head(best) * mask.std((1, 2, 3))[:, None]
        return {"scores": scores, "mask": mask, "place": mask.flatten(1).argmax(1)}


def unusual() -> nn.Module:
    """Return an :class:`Unusual`."""
    return Unusual()


def build(model: Model) -> nn.Module:
    """Return the module that trtq will make of a model's words."""
    kind, _, name = model.name.partition(":")
    given: dict[str, Any] = {}
    for argument in model.arguments:
        key, _, value = argument.partition("=")
        given[key] = int(value)
    if kind == "timm":
        import timm

        return timm.create_model(name, **given)
    return globals()[name](**given)


def write_weights(model: Model, path: Path, *, seed: int = 5) -> Path:
    """Write a checkpoint whose numbers are the same on every processor: even, and from numpy.

    Args:
        model: its shapes count alone.
        path: of the ``.safetensors`` file.
        seed: of the numbers.
    """
    rng, factors, state = np.random.default_rng(seed), dict(model.outliers), {}
    for name, tensor in build(model).state_dict().items():
        if not tensor.is_floating_point():
            state[name] = tensor.clone()
            continue
        noise = torch.from_numpy(rng.random(tuple(tensor.shape), dtype=np.float32)) * 2 - 1
        if name.endswith("running_var"):
            value = 1 + 0.5 * noise
        elif tensor.ndim < 2:
            one = name.endswith("weight")  # of a normalization
            value = 1 + 0.3 * noise if one else 0.1 * noise
        else:
            inputs = tensor[0].numel()
            value = noise * (4.5 / inputs) ** 0.5
        if name in factors:
            value.view(-1)[3::16] *= factors[name]
        state[name] = value
    save_file({k: v.contiguous() for k, v in state.items()}, path)
    return path
