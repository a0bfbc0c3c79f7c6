"""Stable Diffusion's upscalers, of images and of latents."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionLatentUpscalePipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel

from support import pipelines
from support.pipelines import TEXT_WIDTH, clip_text_encoder, clip_tokenizer, image_vae, quiet
from zoo import calls
from zoo.networks import awake, with_parts_of
from zoo.specimen import Specimen


def upscale() -> Any:
    """The upscaler of images: their noise level is a class label, they are three channels behind the latents."""
    pipe = pipelines.sd15(in_channels=7, num_class_embeds=1000)
    schedulers = {
        "scheduler": DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction"),
        "low_res_scheduler": DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    }
    vae = image_vae(scaling_factor=0.08333)
    return with_parts_of(pipe, "StableDiffusionUpscalePipeline", **schedulers, vae=vae, watermarker=None)


def upscale_call() -> dict[str, Any]:
    return calls.TEXT | {"image": pipelines.start_image().resize((16, 16))}


def latent_upscale() -> Any:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        act_fn="gelu",
        attention_head_dim=8,
        norm_num_groups=None,
        block_out_channels=(32, 32, 64, 64),
        time_cond_proj_dim=128 + TEXT_WIDTH,
        conv_in_kernel=1,
        conv_out_kernel=1,
        cross_attention_dim=TEXT_WIDTH,
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
        layers_per_block=1,
        in_channels=8,
        out_channels=5,
        mid_block_type=None,
        only_cross_attention=False,
        resnet_time_scale_shift="scale_shift",
        time_embedding_type="fourier",
        timestep_post_act="gelu",
    )
    return quiet(
        StableDiffusionLatentUpscalePipeline(
            unet=awake(unet, "attn2.to_v", "attn2.to_out.0"),
            scheduler=EulerDiscreteScheduler(prediction_type="sample"),
            vae=image_vae(),
            tokenizer=clip_tokenizer(),
            text_encoder=clip_text_encoder(CLIPTextModel),
        )
    )


def latent_upscale_call() -> dict[str, Any]:
    return calls.TEXT | {"image": pipelines.start_image()}


SPECIMENS = (
    Specimen("StableDiffusionUpscalePipeline", upscale, upscale_call),
    Specimen("StableDiffusionLatentUpscalePipeline", latent_upscale, latent_upscale_call),
)
