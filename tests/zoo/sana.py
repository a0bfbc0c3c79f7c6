"""Sana: text, ControlNet, perturbed attention, and Sana Sprint, whose guidance is an input of the network."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    SanaControlNetModel,
    SanaTransformer2DModel,
    SCMScheduler,
)

from support.pipelines import SIZE, TEXT_TOKENS, TEXT_WIDTH, quiet, start_image
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def vae() -> Any:
    """An autoencoder of few channels, which makes 16 x 16 latents of an image."""
    torch.manual_seed(1)
    return AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )


def sana(name: str, scheduler: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    transformer = SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=TEXT_WIDTH,
        sample_size=SIZE // 2,
        **settings,
    )
    return quiet(
        getattr(diffusers, name)(
            transformer=awake(transformer, "caption_projection.linear_2"),
            scheduler=scheduler(),
            vae=vae(),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.gemma2(),
            **({"controlnet": controlnet(transformer)} if "ControlNet" in name else {}),
        )
    )


def controlnet(transformer: Any) -> Any:
    """A ControlNet with the first layer of the transformer."""
    torch.manual_seed(4)
    return awake(SanaControlNetModel.from_config(transformer.config, num_layers=1))


def flow_dpm() -> Any:
    return DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)


def call() -> dict[str, Any]:
    settings = {"use_resolution_binning": False, "max_sequence_length": TEXT_TOKENS, "complex_human_instruction": None}
    return calls.text() | settings


def sprint_call() -> dict[str, Any]:
    """Two steps are what Sprint is made for; more take their times from the scheduler."""
    return {name: value for name, value in call().items() if name != "negative_prompt"} | {
        "intermediate_timesteps": None
    }


def control() -> dict[str, Any]:
    return call() | {"control_image": start_image()}


SPRINT = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}

SPECIMENS = (
    Specimen("SanaPipeline", partial(sana, "SanaPipeline", flow_dpm), call),
    Specimen("SanaControlNetPipeline", partial(sana, "SanaControlNetPipeline", flow_dpm), control),
    Specimen(
        "SanaPAGPipeline",
        partial(sana, "SanaPAGPipeline", flow_dpm),
        calls.with_arguments(call, pag_scale=2.0),
        layout="branches",
    ),
    Specimen(
        "SanaSprintPipeline",
        partial(sana, "SanaSprintPipeline", SCMScheduler, **SPRINT),
        sprint_call,
        layout="single",
    ),
)
