"""EasyAnimate."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLMagvit, EasyAnimatePipeline, EasyAnimateTransformer3DModel

from support.pipelines import SCHEDULERS, TEXT_WIDTH, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen

TEMPLATE = "{% for message in messages %}{{ message['content'][0]['text'] }}{% endfor %}"


def easyanimate() -> Any:
    torch.manual_seed(0)
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        mmdit_layers=2,
        sample_width=16,
        sample_height=16,
        patch_size=2,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 3),
        up_block_types=("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 3),
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return quiet(
        EasyAnimatePipeline(
            transformer=awake(transformer, "text_proj", "attn1.to_v", "attn1.to_out.0"),
            scheduler=SCHEDULERS["flow-euler"](),
            vae=vae,
            tokenizer=text.spelling_tokenizer(template=TEMPLATE),
            text_encoder=text.gemma2(),
        )
    )


def call() -> dict[str, Any]:
    return calls.TEXT | {"height": 64, "width": 64, "num_frames": 5}


SPECIMENS = (Specimen("EasyAnimatePipeline", easyanimate, call, output="frames"),)
