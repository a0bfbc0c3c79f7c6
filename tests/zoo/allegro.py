"""Allegro."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AllegroPipeline, AllegroTransformer3DModel, AutoencoderKLAllegro, EulerAncestralDiscreteScheduler

from support.pipelines import TEXT_TOKENS, TEXT_WIDTH, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def allegro() -> Any:
    torch.manual_seed(0)
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        cross_attention_dim=24,
        sample_width=8,
        sample_height=8,
        sample_frames=8,
        caption_channels=TEXT_WIDTH,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    vae.enable_tiling()  # it decodes in no other way
    return quiet(
        AllegroPipeline(
            transformer=awake(transformer, "caption_projection.linear_2", "attn2.to_out.0"),
            scheduler=EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear"),
            vae=vae,
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
        )
    )


def call() -> dict[str, Any]:
    sizes = {"height": 64, "width": 64, "num_frames": 8, "max_sequence_length": TEXT_TOKENS}
    return calls.TEXT | sizes | {"clean_caption": False}


SPECIMENS = (Specimen("AllegroPipeline", allegro, call, output="frames"),)
