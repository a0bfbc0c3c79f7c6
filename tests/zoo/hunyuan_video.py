"""The HunyuanVideo family: true guidance beside the distilled one, a guider in 1.5 and in HunyuanImage."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    FlowMatchEulerDiscreteScheduler,
    HunyuanImageTransformer2DModel,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoTransformer3DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance, ClassifierFreeGuidance

from zoo.parts import assemble, embeddings, enliven
from zoo.specimen import Specimen

TEXT, POOLED, GLYPHS = 16, 8, 16
SIZE, FRAMES = 32, 5


def hunyuan_video() -> Any:
    """HunyuanVideo; the text comes in as embeddings."""
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        patch_size_t=1,
        guidance_embeds=True,
        text_embed_dim=TEXT,
        pooled_projection_dim=POOLED,
        rope_axes_dim=(2, 4, 4),
    )
    return _assemble("HunyuanVideoPipeline", transformer, video_vae())


def hunyuan_video_15() -> Any:
    """HunyuanVideo 1.5, whose guider asks for the calls."""
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=TEXT,
        text_embed_2_dim=GLYPHS,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=SIZE,
    )
    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=4,
        block_out_channels=(16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
        downsample_match_channel=False,
        upsample_match_channel=False,
    )
    return _assemble(
        "HunyuanVideo15Pipeline", transformer, enliven(vae), guider=ClassifierFreeGuidance(guidance_scale=4.0)
    )


def hunyuan_image() -> Any:
    """HunyuanImage 2.1, whose guider begins with classifier-free guidance and goes on with projected guidance."""
    transformer = HunyuanImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=4,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=TEXT,
        text_embed_2_dim=GLYPHS,
        rope_axes_dim=(4, 4),
    )
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32, 32, 32),
        layers_per_block=1,
        scaling_factor=0.48,
        spatial_compression_ratio=8,
        sample_size=SIZE,
    )
    guiders = {
        "guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2),
        "ocr_guider": AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=3),
    }
    return _assemble("HunyuanImagePipeline", transformer, enliven(vae), **guiders)


def video_vae() -> AutoencoderKLHunyuanVideo:
    """The VAE of HunyuanVideo: 8 pixels and 4 frames a latent."""
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return enliven(vae, seed=1)


def _assemble(pipeline: str, transformer: torch.nn.Module, vae: torch.nn.Module, **others: Any) -> Any:
    return assemble(
        getattr(diffusers, pipeline),
        transformer=enliven(transformer),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        **others,
    )


def _true_guidance() -> dict[str, Any]:
    words = torch.arange(8)[None]
    return {
        "prompt_embeds": embeddings(1, 8, TEXT),
        "pooled_prompt_embeds": embeddings(1, POOLED, seed=2),
        "prompt_attention_mask": words < 7,
        "negative_prompt_embeds": embeddings(1, 8, TEXT, seed=3),
        "negative_pooled_prompt_embeds": embeddings(1, POOLED, seed=4),
        "negative_prompt_attention_mask": words < 5,
        "true_cfg_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
        "num_frames": FRAMES,
    }


def _for_guider(**others: Any) -> dict[str, Any]:
    words = torch.arange(8)[None]
    return {
        "prompt_embeds": embeddings(1, 8, TEXT),
        "prompt_embeds_mask": (words < 7).long(),
        "prompt_embeds_2": embeddings(1, 4, GLYPHS, seed=2),
        "prompt_embeds_mask_2": torch.ones(1, 4, dtype=torch.long),
        "negative_prompt_embeds": embeddings(1, 8, TEXT, seed=3),
        "negative_prompt_embeds_mask": (words < 5).long(),
        "negative_prompt_embeds_2": embeddings(1, 4, GLYPHS, seed=4),
        "negative_prompt_embeds_mask_2": torch.ones(1, 4, dtype=torch.long),
        "height": SIZE,
        "width": SIZE,
    } | others


SPECIMENS = (
    Specimen("HunyuanVideoPipeline", hunyuan_video, _true_guidance, "sequential", "frames"),
    Specimen("HunyuanVideo15Pipeline", hunyuan_video_15, lambda: _for_guider(num_frames=FRAMES), "guider", "frames"),
    Specimen("HunyuanImagePipeline", hunyuan_image, _for_guider, "guider", steps=5),
)
