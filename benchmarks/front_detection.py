"""Detectors and dense predictors, as published where small, else of a small configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from front_common import SMALL, Door, hf, image, pixels, timm_model, torchvision_model
from torch import nn

YOLOS = (
    *("yolov3-tiny", "yolov5n", "yolov6n", "yolov8n", "yolov9t", "yolov10n", "yolo11n"),
    *("yolo12n", "yolo26n", "yolov8n-p2", "yolov8n-ghost"),
    *("yolov8n-seg", "yolo11n-seg", "yolo26n-seg", "yolo26n-sem", "yolo26n-depth"),
    *("yolov8n-pose", "yolo11n-pose", "yolo26n-pose"),
    *("yolov8n-obb", "yolo11n-obb", "yolo26n-obb"),
    *("yolov8n-cls", "yolo11n-cls"),
)
DETR = {
    "use_timm_backbone": True,
    "use_pretrained_backbone": False,
    "backbone": "resnet18",
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 10,
}
RT_DETR = {
    "d_model": 32,
    "encoder_hidden_dim": 32,
    "num_queries": 20,
    "decoder_layers": 2,  # transformers ties the heads of the second to those of the first
    "encoder_layers": 1,
    "decoder_ffn_dim": 64,
    "encoder_ffn_dim": 64,
    "decoder_attention_heads": 2,
    "encoder_attention_heads": 2,
    "anchor_image_size": None,
    "decoder_in_channels": [32, 32, 32],
}
DPT = {
    **SMALL,
    "num_hidden_layers": 4,
    "image_size": 64,
    "patch_size": 16,
    "backbone_out_indices": [0, 1, 2, 3],
    "neck_hidden_sizes": [8, 16, 16, 16],
    "fusion_hidden_size": 16,
    "is_hybrid": False,
}


def yolo(name: str) -> Door:
    def make() -> nn.Module:
        from ultralytics import RTDETR, YOLO

        return (RTDETR if name.startswith("rtdetr") else YOLO)(f"{name}.yaml").model

    return Door(make=make, example=lambda: image(3, 64))


class Raw(nn.Module):
    """A detector of torchvision without its anchors and NMS: the part that an engine runs."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.backbone, self.head = whole.backbone, whole.head

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.head(list(self.backbone(images).values()))


class Proposals(nn.Module):
    """The first stage of a Faster R-CNN: features and scored, shifted anchors."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.backbone, self.head = whole.backbone, whole.rpn.head

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.head(list(self.backbone(images).values()))


class Boxes(nn.Module):
    """The second stage of a Faster R-CNN, on cut-out features."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.head, self.predictor = whole.roi_heads.box_head, whole.roi_heads.box_predictor

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.predictor(self.head(features))


def of_torchvision(
    name: str, size: int, part: Callable[[Any], nn.Module] = Raw, channels: int = 3
) -> Door:
    whole = torchvision_model("detection", name, weights_backbone=None)
    return Door(make=lambda: part(whole()), example=lambda: image(channels, size))


def alive(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Draw weights that keep the size of what they compute.

    With the usual ones features end near 1e-7: every score is the same but for rounding, and which
    queries are selected says nothing.
    """

    def made() -> nn.Module:
        model = make()
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        return model

    return made


def of_hf(kind: str, size: int = 64, /, *, config: str = "", **options: Any) -> Door:
    stem = kind.split("For", maxsplit=1)[0].removesuffix("Model")
    return Door(make=hf(kind, config or f"{stem}Config", **options), example=pixels(size))


def selecting(kind: str, **options: Any) -> Door:
    door = of_hf(kind, 128, **{**RT_DETR, **options})
    return replace(door, make=alive(door.make))


DETECTION = {
    **{f"ultralytics {n}": yolo(n) for n in YOLOS},
    "ultralytics rtdetr-resnet50": replace(
        yolo("rtdetr-resnet50"), make=alive(yolo("rtdetr-resnet50").make)
    ),
    "torchvision retinanet heads": of_torchvision("retinanet_resnet50_fpn", 128),
    "torchvision fcos heads": of_torchvision("fcos_resnet50_fpn", 128),
    "torchvision ssdlite heads": of_torchvision("ssdlite320_mobilenet_v3_large", 320),
    "torchvision ssd300 heads": of_torchvision("ssd300_vgg16", 300),
    "torchvision faster r-cnn proposals": of_torchvision(
        "fasterrcnn_mobilenet_v3_large_320_fpn", 128, Proposals
    ),
    "torchvision faster r-cnn boxes": of_torchvision(
        "fasterrcnn_mobilenet_v3_large_320_fpn", 7, Boxes, 256
    ),
    "DETR": of_hf("DetrForObjectDetection", **DETR),
    "Conditional DETR": of_hf("ConditionalDetrForObjectDetection", **DETR),
    "Table Transformer": of_hf("TableTransformerForObjectDetection", **DETR),
    "RT-DETR": selecting("RTDetrForObjectDetection"),
    "RT-DETRv2": selecting("RTDetrV2ForObjectDetection"),
    "D-FINE": selecting("DFineForObjectDetection", decoder_n_points=[4, 4, 4]),
    "YOLOS": of_hf(
        "YolosForObjectDetection",
        **{**SMALL, "image_size": [64, 64], "patch_size": 16, "num_detection_tokens": 10},
    ),
}

DENSE = {
    "fcn_resnet50 with aux": Door(
        make=torchvision_model(
            "segmentation", "fcn_resnet50", weights_backbone=None, aux_loss=True
        ),
        example=image,
    ),
    "deeplabv3_mobilenet with aux": Door(
        make=torchvision_model(
            "segmentation", "deeplabv3_mobilenet_v3_large", weights_backbone=None, aux_loss=True
        ),
        example=image,
    ),
    "lraspp": Door(
        make=torchvision_model("segmentation", "lraspp_mobilenet_v3_large", weights_backbone=None),
        example=image,
    ),
    "SegFormer": of_hf(
        "SegformerForSemanticSegmentation",
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=32,
        num_attention_heads=[1, 1, 2, 2],
    ),
    "MobileViT DeepLab": of_hf(
        "MobileViTForSemanticSegmentation",
        128,
        image_size=128,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 32, 64],
        num_attention_heads=2,
        aspp_out_channels=16,
        atrous_rates=[1, 2, 3],
    ),
    "UPerNet": of_hf(
        "UperNetForSemanticSegmentation",
        backbone_config=None,
        backbone="resnet18",
        use_timm_backbone=True,
        use_pretrained_backbone=False,
        backbone_kwargs={"out_indices": [1, 2, 3, 4]},
        hidden_size=16,
        auxiliary_in_channels=256,
        auxiliary_channels=16,
    ),
    "DPT": of_hf("DPTForDepthEstimation", **DPT),
    "Depth Anything": of_hf(
        "DepthAnythingForDepthEstimation",
        70,
        reassemble_hidden_size=384,
        neck_hidden_sizes=[8, 16, 16, 16],
        fusion_hidden_size=16,
        head_hidden_size=8,
    ),
    "GLPN": of_hf(
        "GLPNForDepthEstimation",
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=16,
        num_attention_heads=[1, 1, 2, 2],
    ),
    "Swin2SR": of_hf(
        "Swin2SRForImageSuperResolution",
        image_size=16,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
        upscale=2,
    ),
}

FEATURES = {
    **{
        f"features_only {n}": Door(make=timm_model(n, features_only=True), example=image)
        for n in (
            "resnet18",
            "mobilenetv3_small_100",
            "efficientnet_b0",
            "convnext_atto",
            "hrnet_w18_small",
        )
    },
    "features_only swin": Door(
        make=timm_model("swin_tiny_patch4_window7_224", features_only=True, img_size=112),
        example=lambda: image(3, 112),
    ),
}

BRANCHES = {
    **{n: Door(make=timm_model(n), example=image) for n in ("mobileone_s0", "repvgg_a0")},
    **{n: Door(make=timm_model(n), example=image) for n in ("fastvit_t8", "repghostnet_050")},
    "torch.compile": Door(make=lambda: torch.compile(timm_model("resnet18")()), example=image),
    "DataParallel": Door(make=lambda: nn.DataParallel(timm_model("resnet18")()), example=image),
}
