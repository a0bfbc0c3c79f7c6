"""A tiny CLIP that sees."""

from __future__ import annotations

from typing import Any

import torch
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from support.pipelines import TEXT_WIDTH

CLIP_SIZE = 224  # pixels; some pipelines resize images to this whatever the encoder wants


def image_encoder() -> Any:
    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=16,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=CLIP_SIZE,
        patch_size=CLIP_SIZE // 4,
    )
    return CLIPVisionModelWithProjection(config).eval()


def image_processor() -> Any:
    return CLIPImageProcessor(crop_size=CLIP_SIZE, size=CLIP_SIZE)
