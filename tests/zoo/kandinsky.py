"""Kandinsky 2.2, whose decoder is guided by an image embedding, and Kandinsky 3."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, Kandinsky3UNet, UNet2DConditionModel, VQModel

from support import pipelines
from support.pipelines import SIZE, TEXT_WIDTH, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen

PIXELS = 128  # Kandinsky 3 divides by 64 and multiplies by 8: 16 x 16 latents


def movq() -> Any:
    torch.manual_seed(1)
    return VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=8,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )


def kandinsky22(name: str, **settings: Any) -> Any:
    """The decoder; its U-Net predicts mean and variance. `settings` replaces or adds some of the U-Net's."""
    torch.manual_seed(0)
    config = {
        "in_channels": 4,
        "out_channels": 8,
        "addition_embed_type": "image",
        "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "encoder_hid_dim": TEXT_WIDTH,
        "encoder_hid_dim_type": "image_proj",
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "resnet_time_scale_shift": "scale_shift",
    }
    unet = UNet2DConditionModel(**config | settings)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, variance_type="learned_range", clip_sample=False)
    pipeline = getattr(diffusers, name)
    return quiet(pipeline(unet=awake(unet, "add_embedding.image_proj", factor=3.0), scheduler=scheduler, movq=movq()))


def decode() -> dict[str, Any]:
    return {
        "image_embeds": text.embeddings(1, TEXT_WIDTH, seed=1),
        "negative_image_embeds": text.embeddings(1, TEXT_WIDTH, seed=2),
        "height": SIZE,
        "width": SIZE,
        "guidance_scale": 4.0,
    }


def decode_over_image() -> dict[str, Any]:
    return decode() | {"image": pipelines.start_image(), "strength": 0.8}


def kandinsky3(name: str) -> Any:
    torch.manual_seed(0)
    unet = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=8,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        block_out_channels=(16, 32),
        cross_attention_dim=16,
        encoder_hid_dim=TEXT_WIDTH,
    )
    return quiet(
        getattr(diffusers, name)(
            unet=awake(unet, "encoder_hid_proj.projection_linear"),
            scheduler=DDPMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="squaredcos_cap_v2", steps_offset=1
            ),
            movq=movq(),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
        )
    )


def large() -> dict[str, Any]:
    return calls.text() | {"height": PIXELS, "width": PIXELS}


def decode_by_hint() -> dict[str, Any]:
    """A call with a hint eight times as large as the latents, as the network takes for granted."""
    return decode() | {"hint": text.embeddings(1, 3, PIXELS, PIXELS, seed=5)}


HINTED = {"in_channels": 8, "addition_embed_type": "image_hint"}

SPECIMENS = (
    Specimen(
        "KandinskyV22ControlnetPipeline",
        partial(kandinsky22, "KandinskyV22ControlnetPipeline", **HINTED),
        decode_by_hint,
        latent=False,
    ),
    Specimen("KandinskyV22Pipeline", partial(kandinsky22, "KandinskyV22Pipeline"), decode),
    Specimen("KandinskyV22Img2ImgPipeline", partial(kandinsky22, "KandinskyV22Img2ImgPipeline"), decode_over_image),
    Specimen("Kandinsky3Pipeline", partial(kandinsky3, "Kandinsky3Pipeline"), large),
    Specimen("Kandinsky3Img2ImgPipeline", partial(kandinsky3, "Kandinsky3Img2ImgPipeline"), calls.image, latent=False),
)
