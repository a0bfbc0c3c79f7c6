"""Latte."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import LattePipeline, LatteTransformer3DModel

from support.pipelines import SCHEDULERS, SIZE, TEXT_WIDTH, image_vae, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def latte() -> Any:
    torch.manual_seed(0)
    transformer = LatteTransformer3DModel(
        sample_size=SIZE // 2,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=TEXT_WIDTH,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=4,
    )
    return quiet(
        LattePipeline(
            transformer=awake(transformer, "caption_projection.linear_2"),
            scheduler=SCHEDULERS["ddim"](),
            vae=image_vae(),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
        )
    )


def call() -> dict[str, Any]:
    return calls.text() | {"video_length": 4, "clean_caption": False}


SPECIMENS = (Specimen("LattePipeline", latte, call, output="frames"),)
