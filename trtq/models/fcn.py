"""FCN-ResNet18, the segmentation model of the thesis.

It is a ResNet-18 backbone under torchvision's FCN head.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.segmentation.fcn import FCNHead


class FCNResNet18(nn.Module):
    """ResNet-18 at output stride 32, an FCN head, and bilinear upsampling to the input size.

    Args:
        num_classes: number of output channels.
    """

    def __init__(self, num_classes: int = 21) -> None:
        super().__init__()
        net = resnet18(weights=None)
        self.backbone = nn.Sequential()
        for name, child in net.named_children():
            if name not in ("avgpool", "fc"):
                self.backbone.add_module(name, child)
        self.classifier = FCNHead(512, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of shape [N, num_classes, H, W] for images of shape [N, 3, H, W]."""
        logits = self.classifier(self.backbone(x))
        return nn.functional.interpolate(
            logits, size=x.shape[-2:], mode="bilinear", align_corners=False
        )


def fcn_resnet18(num_classes: int = 21) -> FCNResNet18:
    """Return an untrained FCN-ResNet18.

    Args:
        num_classes: number of output channels.
    """
    return FCNResNet18(num_classes=int(num_classes))
