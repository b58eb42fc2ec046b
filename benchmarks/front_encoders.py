"""Encoders of images, text and speech of transformers, each of a small configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from front_common import SMALL, TEXT, VISION, Door, hf, ids, image
from front_detection import of_hf
from torch import nn

WHISPER = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_mel_bins": 16,
    "max_source_positions": 50,
    "vocab_size": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
SPEECH = {
    **SMALL,
    "conv_dim": [16, 16],
    "conv_kernel": [8, 4],
    "conv_stride": [4, 4],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_feat_extract_layers": 2,
}
SAM = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 64,
    "patch_size": 16,
    "output_channels": 16,
    "mlp_dim": 64,
    "window_size": 2,
    "global_attn_indexes": [1],
}


def text(kind: str, config: str, **options: Any) -> Door:
    return Door(make=hf(kind, config, **options), example=ids)


def part(whole: Callable[[], Any], name: str) -> Callable[[], nn.Module]:
    return lambda: getattr(whole(), name)


def words_with_boxes() -> dict[str, torch.Tensor]:
    """Return words and where they are: left, top, right, bottom, in this order."""
    corners = torch.randint(0, 32, (2, 16, 2))
    return {**ids(), "bbox": torch.cat([corners, corners + torch.randint(0, 32, (2, 16, 2))], 2)}


PAIR = {"text_config": {**TEXT, "projection_dim": 16}, "projection_dim": 16}
ENCODERS = {
    "CLIP": Door(
        make=hf("CLIPModel", "CLIPConfig", vision_config={**VISION, "projection_dim": 16}, **PAIR),
        example=lambda: {**ids(), "pixel_values": image()},
    ),
    "SigLIP": Door(
        make=hf("SiglipModel", "SiglipConfig", text_config=TEXT, vision_config=VISION),
        example=lambda: {"input_ids": ids()["input_ids"], "pixel_values": image()},
    ),
    "CLIP image": of_hf("CLIPVisionModelWithProjection", config="CLIPVisionConfig", **VISION),
    "CLIP text": text("CLIPTextModelWithProjection", "CLIPTextConfig", **TEXT),
    "SigLIP image": of_hf("SiglipVisionModel", config="SiglipVisionConfig", **VISION),
    "BLIP image": of_hf("BlipVisionModel", config="BlipVisionConfig", **VISION),
    "DINOv2": of_hf("Dinov2Model", 70, **SMALL, image_size=70, patch_size=14),
    "DINOv2 with registers": of_hf(
        "Dinov2WithRegistersModel", 70, **SMALL, image_size=70, patch_size=14
    ),
    "DINOv3": of_hf("DINOv3ViTModel", **VISION, num_register_tokens=2),
    "ViT": of_hf("ViTForImageClassification", **VISION),
    "DeiT": of_hf("DeiTForImageClassificationWithTeacher", config="DeiTConfig", **VISION),
    "BEiT": of_hf("BeitForImageClassification", **VISION),
    "Data2Vec image": of_hf("Data2VecVisionModel", **VISION),
    "Swin": of_hf(
        "SwinModel", image_size=64, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    ),
    "Swinv2": of_hf(
        "Swinv2ForImageClassification",
        image_size=64,
        embed_dim=16,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
    ),
    "PVTv2": of_hf(
        "PvtV2ForImageClassification",
        image_size=64,
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
    ),
    "ConvNeXt v2": of_hf(
        "ConvNextV2ForImageClassification", hidden_sizes=[16, 16, 32, 32], depths=[1, 1, 1, 1]
    ),
    "ResNet HF": of_hf(
        "ResNetForImageClassification", embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1]
    ),
    "SAM encoder": of_hf("SamVisionModel", config="SamVisionConfig", **SAM),
    "VideoMAE": Door(
        make=hf("VideoMAEModel", "VideoMAEConfig", **VISION, num_frames=4, tubelet_size=2),
        example=lambda: {"pixel_values": torch.randn(2, 4, 3, 64, 64)},
    ),
    "TimeSformer": Door(
        make=hf("TimesformerModel", "TimesformerConfig", **VISION, num_frames=2),
        example=lambda: {"pixel_values": torch.randn(2, 2, 3, 64, 64)},
    ),
}

TEXTS = {
    "BERT": text("BertModel", "BertConfig", **TEXT),
    "BERT classifier": text("BertForSequenceClassification", "BertConfig", **TEXT),
    "BERT tokens": text("BertForTokenClassification", "BertConfig", **TEXT),
    "BERT answers": text("BertForQuestionAnswering", "BertConfig", **TEXT),
    "RoBERTa": text("RobertaModel", "RobertaConfig", **TEXT),
    "XLM-RoBERTa": text("XLMRobertaModel", "XLMRobertaConfig", **TEXT),
    "DistilBERT": text(
        "DistilBertModel",
        "DistilBertConfig",
        dim=32,
        n_layers=2,
        n_heads=2,
        hidden_dim=64,
        vocab_size=100,
    ),
    "MPNet": text("MPNetModel", "MPNetConfig", **TEXT),
    "ELECTRA": text("ElectraModel", "ElectraConfig", **TEXT, embedding_size=32),
    "ALBERT": text("AlbertModel", "AlbertConfig", **TEXT, embedding_size=32),
    "DeBERTa v2": text("DebertaV2Model", "DebertaV2Config", **TEXT),
    "ModernBERT": text("ModernBertModel", "ModernBertConfig", **TEXT, pad_token_id=0),
    "T5 encoder": text(
        "T5EncoderModel",
        "T5Config",
        vocab_size=100,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
    ),
    "LayoutLM": Door(
        make=hf("LayoutLMModel", "LayoutLMConfig", **TEXT, max_2d_position_embeddings=64),
        example=words_with_boxes,
        data=lambda _folder: [{n: t[0] for n, t in words_with_boxes().items()} for _ in range(8)],
    ),
}

SPEECHES = {
    "Wav2Vec2": Door(
        make=hf("Wav2Vec2Model", "Wav2Vec2Config", **SPEECH),
        example=lambda: {"input_values": torch.randn(2, 1600)},
    ),
    "Wav2Vec2 CTC": Door(
        make=hf("Wav2Vec2ForCTC", "Wav2Vec2Config", **SPEECH, vocab_size=30),
        example=lambda: {"input_values": torch.randn(2, 1600)},
    ),
    "HuBERT": Door(
        make=hf("HubertModel", "HubertConfig", **SPEECH),
        example=lambda: {"input_values": torch.randn(2, 1600)},
    ),
    "Whisper encoder": Door(
        make=part(hf("WhisperModel", "WhisperConfig", **WHISPER), "encoder"),
        example=lambda: {"input_features": torch.randn(2, 16, 100)},
    ),
    "AST": Door(
        make=hf(
            "ASTForAudioClassification",
            "ASTConfig",
            **SMALL,
            patch_size=16,
            max_length=64,
            num_mel_bins=32,
        ),
        example=lambda: {"input_values": torch.randn(2, 64, 32)},
    ),
    "PatchTST": Door(
        make=hf(
            "PatchTSTForPrediction",
            "PatchTSTConfig",
            num_input_channels=3,
            context_length=32,
            patch_length=8,
            patch_stride=8,
            prediction_length=8,
            d_model=32,
            num_attention_heads=2,
            num_hidden_layers=2,
            ffn_dim=64,
        ),
        example=lambda: {"past_values": torch.randn(2, 32, 3)},
    ),
}
