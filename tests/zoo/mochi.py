"""Mochi 1."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel

from support.pipelines import TEXT_TOKENS, TEXT_WIDTH, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def mochi() -> Any:
    torch.manual_seed(0)
    transformer = MochiTransformer3DModel(
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=8,
        max_sequence_length=TEXT_TOKENS,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return quiet(
        MochiPipeline(
            transformer=awake(transformer, "caption_proj", "attn1.add_v_proj"),
            scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            vae=vae,
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
        )
    )


def call() -> dict[str, Any]:
    sizes = {"height": 64, "width": 64, "num_frames": 7, "max_sequence_length": TEXT_TOKENS}
    return calls.TEXT | sizes


SPECIMENS = (Specimen("MochiPipeline", mochi, call, output="frames"),)
