"""Tiny models that contain what breaks tools.

They have residual adds, depthwise convolutions, attention, uneven padding and dict outputs.
"""

from __future__ import annotations

import torch
from torch import nn


class TinyCNN(nn.Module):
    """Stem, a residual block, a strided depthwise block with uneven padding, a head."""

    def __init__(self, num_classes: int = 4, width: int = 16) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.depthwise = nn.Conv2d(width, width, 3, stride=2, groups=width, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pointwise = nn.Conv2d(width, 2 * width, 1)
        self.head = nn.Linear(2 * width, num_classes)
        self.drop = nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [N, num_classes]."""
        x = torch.relu(self.stem_bn(self.stem(x)))
        x = torch.relu(self.bn1(self.conv1(x)) + x)
        x = nn.functional.pad(x, (0, 1, 0, 1))
        x = nn.functional.relu6(self.bn2(self.depthwise(x)), inplace=True)
        x = torch.relu(self.pointwise(x)).mean((2, 3))
        return self.head(self.drop(x))  # type: ignore[no-any-return]


class TinySegmenter(nn.Module):
    """Two strided convolutions, one at low resolution, logits of every pixel."""

    def __init__(self, num_classes: int = 3, width: int = 12) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [N, num_classes, H, W]."""
        y = torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))
        return nn.functional.interpolate(
            self.head(y), size=x.shape[-2:], mode="bilinear", align_corners=False
        )


class TinyBlock(nn.Module):
    """Attention and MLP around LayerNorms, as a ViT has them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [N, T, C] for [N, T, C]."""
        n, t, c = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .reshape(n, t, 3, self.heads, c // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        a = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c)
        x = x + self.proj(a)
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class TinyViT(nn.Module):
    """A vision transformer with patches of 8 and two blocks.

    ``outlier`` is added to one channel of the residual stream and never removed.
    """

    def __init__(self, num_classes: int = 4, dim: int = 32, outlier: float = 0.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.patch = nn.Conv2d(3, dim, 8, stride=8)
        self.blocks = nn.ModuleList([TinyBlock(dim, 2), TinyBlock(dim, 2)])
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)
        if outlier:
            with torch.no_grad():
                assert self.patch.bias is not None
                self.patch.bias[3] += outlier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [N, num_classes]."""
        x = self.patch(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))  # type: ignore[no-any-return]


class TinyTextBlock(nn.Module):
    """One encoder block with the norms behind the residual adds, as BERT has them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor, attends: torch.Tensor) -> torch.Tensor:
        """Return [N, T, C] for [N, T, C] and the keys that count, bool [N, T]."""
        n, t, c = x.shape
        q, k, v = (
            layer(x).view(n, t, self.heads, c // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        a = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=attends[:, None, None])
        x = self.norm1(x + self.proj(a.transpose(1, 2).reshape(n, t, c)))
        return self.norm2(x + self.fc2(nn.functional.gelu(self.fc1(x))))  # type: ignore[no-any-return]


class TinyTextEncoder(nn.Module):
    """A text encoder with two blocks, which gives one vector of length 1 a text."""

    def __init__(self, words: int = 100, dim: int = 32, longest: int = 64) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, dim), nn.Embedding(longest, dim)
        self.norm = nn.LayerNorm(dim)
        self.blocks = nn.ModuleList([TinyTextBlock(dim, 2), TinyTextBlock(dim, 2)])

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return vectors [N, C] for indices and masks, int64 [N, T]."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.places(places))
        for block in self.blocks:
            x = block(x, attention_mask.bool())
        kept = attention_mask[..., None].float()
        return nn.functional.normalize((x * kept).sum(1) / kept.sum(1).clamp_min(1.0), dim=1)


class DictOutput(nn.Module):
    """Returns a dict, as torchvision's segmentation models do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ``{"out": [N, 5, H, W]}``."""
        return {"out": self.conv(x)}


class DataDependent(nn.Module):
    """Decides by the values of a tensor: no graph can hold that."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a mean over pixels, negated when the sum is negative."""
        y = self.conv(x)
        mean: torch.Tensor = y.mean((2, 3))
        return mean if y.sum() > 0 else -mean


def _randomize_(module: nn.Module) -> nn.Module:
    """Give BatchNorms statistics a trained network would have."""
    generator = torch.Generator().manual_seed(1)
    for child in module.modules():
        if (
            isinstance(child, nn.BatchNorm2d)
            and child.running_mean is not None
            and child.running_var is not None
        ):
            child.running_mean.copy_(torch.randn(child.num_features, generator=generator) * 0.2)
            child.running_var.copy_(torch.rand(child.num_features, generator=generator) + 0.5)
    return module


def tiny_cnn(num_classes: int = 4) -> nn.Module:
    """Return a :class:`TinyCNN`."""
    return _randomize_(TinyCNN(num_classes))


def tiny_segmenter(num_classes: int = 3) -> nn.Module:
    """Return a :class:`TinySegmenter`."""
    return _randomize_(TinySegmenter(num_classes))


def tiny_vit(num_classes: int = 4, outlier: float = 0.0) -> nn.Module:
    """Return a :class:`TinyViT`."""
    return TinyViT(num_classes, outlier=outlier)


def tiny_text_encoder() -> nn.Module:
    """Return a :class:`TinyTextEncoder`."""
    return TinyTextEncoder()


def dict_output() -> nn.Module:
    """Return a :class:`DictOutput`."""
    return DictOutput()


def data_dependent() -> nn.Module:
    """Return a :class:`DataDependent`."""
    return DataDependent()
