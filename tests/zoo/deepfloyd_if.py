"""DeepFloyd IF, which denoises pixels and predicts their variance."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

from support.pipelines import TEXT_WIDTH, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def deepfloyd() -> Any:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=32,
        encoder_hid_dim=TEXT_WIDTH,
        attention_head_dim=8,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", thresholding=True, sample_max_value=1.5, variance_type="learned_range"
    )
    return quiet(
        IFPipeline(
            unet=awake(unet, "add_embedding.proj"),
            scheduler=scheduler,
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
            safety_checker=None,
            feature_extractor=None,
            watermarker=None,
            requires_safety_checker=False,
        )
    )


def call() -> dict[str, Any]:
    return calls.TEXT | {"height": 16, "width": 16, "clean_caption": False}


SPECIMENS = (Specimen("IFPipeline", deepfloyd, call, latent=False),)
