"""U-Nets that make films of images: Stable Video Diffusion, and I2VGen-XL; and one that makes them of text."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    I2VGenXLPipeline,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.unets.unet_i2vgen_xl import I2VGenXLUNet
from transformers import CLIPTextModel

from support import pipelines
from support.pipelines import SCHEDULERS, SIZE, TEXT_WIDTH, clip_text_encoder, clip_tokenizer, image_vae, quiet
from zoo import calls
from zoo.image_encoders import image_encoder, image_processor
from zoo.networks import awake
from zoo.specimen import Specimen

FRAMES = 4


def stable_video_diffusion() -> Any:
    """Its scale of guidance rises from frame to frame, its image stands beside the latents."""
    torch.manual_seed(0)
    unet = UNetSpatioTemporalConditionModel(
        sample_size=SIZE // 2,
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=TEXT_WIDTH,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    return quiet(
        StableVideoDiffusionPipeline(
            unet=awake(unet),
            scheduler=scheduler,
            vae=vae,
            image_encoder=image_encoder(),
            feature_extractor=image_processor(),
        )
    )


_FILMS: dict[str, Any] = {
    "sample_size": SIZE // 2,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "cross_attention_dim": TEXT_WIDTH,
}
"""What the U-Nets of films have in common."""


def still() -> dict[str, Any]:
    return {
        "image": pipelines.start_image(),
        "height": SIZE,
        "width": SIZE,
        "num_frames": FRAMES,
        "min_guidance_scale": 1.0,
        "max_guidance_scale": 3.0,
    }


def i2vgen_xl() -> Any:
    torch.manual_seed(0)
    unet = I2VGenXLUNet(**_FILMS, attention_head_dim=2)
    return quiet(
        I2VGenXLPipeline(
            unet=awake(unet, "attn2.to_v", "attn2.to_out.0"),
            scheduler=SCHEDULERS["ddim"](),
            vae=image_vae(),
            tokenizer=clip_tokenizer(),
            text_encoder=clip_text_encoder(CLIPTextModel),
            image_encoder=image_encoder(),
            feature_extractor=image_processor(),
        )
    )


def text_to_video() -> Any:
    torch.manual_seed(0)
    unet = UNet3DConditionModel(**_FILMS, attention_head_dim=8)
    return quiet(
        TextToVideoSDPipeline(
            unet=awake(unet, "attn2.to_v", "attn2.to_out.0"),
            scheduler=SCHEDULERS["ddim"](),
            vae=image_vae(),
            tokenizer=clip_tokenizer(),
            text_encoder=clip_text_encoder(CLIPTextModel),
        )
    )


def text() -> dict[str, Any]:
    return calls.text() | {"num_frames": FRAMES}


def text_and_image() -> dict[str, Any]:
    """A call without skipping a layer of CLIP: the pipeline would look for an attribute that CLIP has no more."""
    return text() | {"image": pipelines.start_image(), "clip_skip": None}


SPECIMENS = (
    Specimen("StableVideoDiffusionPipeline", stable_video_diffusion, still, output="frames"),
    Specimen("I2VGenXLPipeline", i2vgen_xl, text_and_image, output="frames"),
    Specimen("TextToVideoSDPipeline", text_to_video, text, output="frames"),
)
