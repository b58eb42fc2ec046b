"""Models and inputs that people deploy, with random weights: what front_door.py tries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn


class Door(NamedTuple):
    """One model: its group, what makes it, one batch of its inputs."""

    group: str
    make: Callable[[], nn.Module]
    example: Callable[[], object]


def image(channels: int = 3, size: int = 64, count: int = 2) -> torch.Tensor:
    return torch.randn(count, channels, size, size)


def timm_model(name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, **options)

    return make


def torchvision_model(group: str, name: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import importlib

        module = importlib.import_module(
            f"torchvision.models.{group}" if group else "torchvision.models"
        )
        return getattr(module, name)(weights=None, **options)

    return make


def hf(kind: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        return getattr(transformers, kind)(getattr(transformers, config)(**options))

    return make


def yolo(file: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from ultralytics import YOLO

        return YOLO(file).model

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


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        a, b = (self.body(x).mean((2, 3)) for x in (left, right))
        return nn.functional.cosine_similarity(a, b)


class Bytes(nn.Module):
    """Pixels as they come: uint8, normalised in the graph."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.body(pixels.permute(0, 3, 1, 2).float() / 255.0)


class Audio(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, 16, 9, 4, 4), nn.ReLU(), nn.Conv1d(16, 32, 9, 4, 4), nn.ReLU()
        )
        self.rnn = nn.GRU(32, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, wave: torch.Tensor) -> dict[str, torch.Tensor]:
        seen, last = self.rnn(self.body(wave).transpose(1, 2))
        return {"logits": self.head(seen[:, -1]), "state": last}


class Depth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rgb, self.depth = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(1, 8, 3, 2, 1)
        self.join = nn.Conv2d(16, 8, 3, 1, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, rgb: torch.Tensor, depth: torch.Tensor) -> torch.Tensor:
        return self.head(self.join(torch.cat([self.rgb(rgb), self.depth(depth)], 1)).relu())


def small_resnet(channels: int = 3) -> Callable[[], nn.Module]:
    return timm_model("resnet18", in_chans=channels)


def det_backbone() -> nn.Module:
    """torchvision's RetinaNet without its anchors and NMS: the part that an engine runs."""
    import torchvision

    whole = torchvision.models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None)

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = whole.backbone, whole.head

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.head(list(self.backbone(images).values()))

    return Raw()


def ssd() -> nn.Module:
    import torchvision

    whole = torchvision.models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    )

    class Raw(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone, self.head = whole.backbone, whole.head

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return self.head(list(self.backbone(images).values()))

    return Raw()


DOORS: dict[str, Door] = {
    # several inputs, other ranks, other types
    "siamese": Door("inputs", Siamese, lambda: {"left": image(), "right": image()}),
    "rgb and depth": Door("inputs", Depth, lambda: {"rgb": image(), "depth": image(1)}),
    "uint8 NHWC": Door(
        "inputs",
        lambda: Bytes(small_resnet()()),
        lambda: torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8),
    ),
    "audio GRU": Door("inputs", Audio, lambda: {"wave": torch.randn(2, 1, 800)}),
    "1 channel": Door("inputs", small_resnet(1), lambda: image(1)),
    "2 channels": Door("inputs", small_resnet(2), lambda: image(2)),
    "4 channels": Door("inputs", small_resnet(4), lambda: image(4)),
    "6 channels": Door("inputs", small_resnet(6), lambda: image(6)),
    "video r3d_18": Door(
        "inputs", torchvision_model("video", "r3d_18"), lambda: torch.randn(2, 3, 8, 32, 32)
    ),
    "video mc3_18": Door(
        "inputs", torchvision_model("video", "mc3_18"), lambda: torch.randn(2, 3, 8, 32, 32)
    ),
    "optical flow raft_small": Door(
        "inputs",
        torchvision_model("optical_flow", "raft_small"),
        lambda: {"image1": image(3, 128), "image2": image(3, 128)},
    ),
    # detectors
    **{
        f"ultralytics {n}": Door("detection", yolo(f"{n}.yaml"), lambda: image(3, 64))
        for n in (
            "yolov5n",
            "yolov8n",
            "yolov9t",
            "yolov10n",
            "yolo11n",
            "yolo12n",
            "yolo26n",
            "yolov8n-seg",
            "yolo11n-seg",
            "yolov8n-pose",
            "yolo11n-pose",
            "yolov8n-obb",
            "yolov8n-cls",
            "yolo11n-cls",
        )
    },
    "torchvision retinanet heads": Door("detection", det_backbone, lambda: image(3, 128)),
    "torchvision ssdlite heads": Door("detection", ssd, lambda: image(3, 320)),
    "DETR": Door(
        "detection",
        hf(
            "DetrForObjectDetection",
            "DetrConfig",
            use_timm_backbone=True,
            use_pretrained_backbone=False,
            backbone="resnet18",
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            num_queries=10,
        ),
        lambda: {"pixel_values": image(3, 64)},
    ),
    "RT-DETR": Door(
        "detection",
        hf(
            "RTDetrForObjectDetection",
            "RTDetrConfig",
            d_model=32,
            encoder_hidden_dim=32,
            num_queries=20,
            decoder_layers=1,
            encoder_layers=1,
            decoder_ffn_dim=64,
            encoder_ffn_dim=64,
            decoder_attention_heads=2,
            encoder_attention_heads=2,
            anchor_image_size=None,
            use_timm_backbone=False,
        ),
        lambda: {"pixel_values": image(3, 128)},
    ),
    "YOLOS": Door(
        "detection",
        hf(
            "YolosForObjectDetection",
            "YolosConfig",
            **SMALL,
            image_size=[64, 64],
            patch_size=16,
            num_detection_tokens=10,
        ),
        lambda: {"pixel_values": image(3, 64)},
    ),
    # dense
    "fcn_resnet50 with aux": Door(
        "dense",
        torchvision_model("segmentation", "fcn_resnet50", weights_backbone=None, aux_loss=True),
        image,
    ),
    "deeplabv3_mobilenet": Door(
        "dense",
        torchvision_model(
            "segmentation", "deeplabv3_mobilenet_v3_large", weights_backbone=None, aux_loss=True
        ),
        image,
    ),
    "lraspp": Door(
        "dense",
        torchvision_model("segmentation", "lraspp_mobilenet_v3_large", weights_backbone=None),
        image,
    ),
    "SegFormer": Door(
        "dense",
        hf(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            hidden_sizes=[16, 16, 32, 32],
            depths=[1, 1, 1, 1],
            decoder_hidden_size=32,
            num_attention_heads=[1, 1, 2, 2],
        ),
        lambda: {"pixel_values": image(3, 64)},
    ),
    "DPT": Door(
        "dense",
        hf(
            "DPTForDepthEstimation",
            "DPTConfig",
            **{**SMALL, "num_hidden_layers": 4},
            image_size=64,
            patch_size=16,
            backbone_out_indices=[0, 1, 2, 3],
            neck_hidden_sizes=[8, 16, 16, 16],
            fusion_hidden_size=16,
            is_hybrid=False,
        ),
        lambda: {"pixel_values": image(3, 64)},
    ),
    "Depth Anything": Door(
        "dense",
        hf(
            "DepthAnythingForDepthEstimation",
            "DepthAnythingConfig",
            reassemble_hidden_size=32,
            neck_hidden_sizes=[8, 16, 16, 16],
            fusion_hidden_size=16,
            head_hidden_size=8,
        ),
        lambda: {"pixel_values": image(3, 70)},
    ),
    # features
    **{
        f"features_only {n}": Door(
            "features", timm_model(n, features_only=True), lambda: image(3, 64)
        )
        for n in (
            "resnet18",
            "mobilenetv3_small_100",
            "efficientnet_b0",
            "convnext_atto",
            "hrnet_w18_small",
        )
    },
    "features_only swin": Door(
        "features",
        timm_model("swin_tiny_patch4_window7_224", features_only=True),
        lambda: image(3, 224),
    ),
    # encoders
    "CLIP": Door(
        "encoders",
        hf(
            "CLIPModel",
            "CLIPConfig",
            text_config={**TEXT, "projection_dim": 16},
            vision_config={**VISION, "projection_dim": 16},
            projection_dim=16,
        ),
        lambda: {**ids(), "pixel_values": image(3, 64)},
    ),
    "CLIP image": Door(
        "encoders",
        hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", **VISION),
        lambda: {"pixel_values": image(3, 64)},
    ),
    "SigLIP image": Door(
        "encoders",
        hf("SiglipVisionModel", "SiglipVisionConfig", **VISION),
        lambda: {"pixel_values": image(3, 64)},
    ),
    "DINOv2": Door(
        "encoders",
        hf("Dinov2Model", "Dinov2Config", **{**SMALL}, image_size=70, patch_size=14),
        lambda: {"pixel_values": image(3, 70)},
    ),
    "ViT": Door(
        "encoders",
        hf("ViTForImageClassification", "ViTConfig", **VISION),
        lambda: {"pixel_values": image(3, 64)},
    ),
    "BEiT": Door(
        "encoders",
        hf("BeitForImageClassification", "BeitConfig", **VISION),
        lambda: {"pixel_values": image(3, 64)},
    ),
    "Swinv2": Door(
        "encoders",
        hf(
            "Swinv2ForImageClassification",
            "Swinv2Config",
            image_size=64,
            embed_dim=16,
            depths=[1, 1],
            num_heads=[2, 2],
            window_size=4,
        ),
        lambda: {"pixel_values": image(3, 64)},
    ),
    "ResNet HF": Door(
        "encoders",
        hf(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=16,
            hidden_sizes=[16, 32],
            depths=[1, 1],
        ),
        lambda: {"pixel_values": image(3, 64)},
    ),
    "SAM encoder": Door(
        "encoders",
        hf(
            "SamVisionModel",
            "SamVisionConfig",
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=64,
            patch_size=16,
            output_channels=16,
            mlp_dim=64,
            window_size=2,
            global_attn_indexes=[1],
        ),
        lambda: {"pixel_values": image(3, 64)},
    ),
    # text
    "BERT": Door("text", hf("BertModel", "BertConfig", **TEXT), ids),
    "BERT classifier": Door("text", hf("BertForSequenceClassification", "BertConfig", **TEXT), ids),
    "RoBERTa": Door("text", hf("RobertaModel", "RobertaConfig", **TEXT), ids),
    "DistilBERT": Door(
        "text",
        hf(
            "DistilBertModel",
            "DistilBertConfig",
            dim=32,
            n_layers=2,
            n_heads=2,
            hidden_dim=64,
            vocab_size=100,
        ),
        ids,
    ),
    "MPNet": Door("text", hf("MPNetModel", "MPNetConfig", **TEXT), ids),
    "ELECTRA": Door("text", hf("ElectraModel", "ElectraConfig", **TEXT, embedding_size=32), ids),
    "ALBERT": Door("text", hf("AlbertModel", "AlbertConfig", **TEXT, embedding_size=32), ids),
    # speech
    "Wav2Vec2": Door(
        "speech",
        hf(
            "Wav2Vec2Model",
            "Wav2Vec2Config",
            **SMALL,
            conv_dim=[16, 16],
            conv_kernel=[8, 4],
            conv_stride=[4, 4],
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        ),
        lambda: {"input_values": torch.randn(2, 1600)},
    ),
    "Whisper encoder": Door(
        "speech",
        lambda: (
            hf(
                "WhisperModel",
                "WhisperConfig",
                d_model=32,
                encoder_layers=1,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=64,
                decoder_ffn_dim=64,
                num_mel_bins=16,
                max_source_positions=50,
                vocab_size=100,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
                decoder_start_token_id=1,
            )().encoder
        ),
        lambda: {"input_features": torch.randn(2, 16, 100)},
    ),
    "AST": Door(
        "speech",
        hf(
            "ASTForAudioClassification",
            "ASTConfig",
            **SMALL,
            patch_size=16,
            max_length=64,
            num_mel_bins=32,
        ),
        lambda: {"input_values": torch.randn(2, 64, 32)},
    ),
    # training branches
    "mobileone_s0": Door("reparameterised", timm_model("mobileone_s0"), lambda: image(3, 64)),
    "repvgg_a0": Door("reparameterised", timm_model("repvgg_a0"), lambda: image(3, 64)),
    "fastvit_t8": Door("reparameterised", timm_model("fastvit_t8"), lambda: image(3, 64)),
    "compiled": Door("wrapped", lambda: torch.compile(small_resnet()()), image),
    "DataParallel": Door("wrapped", lambda: nn.DataParallel(small_resnet()()), image),
}
