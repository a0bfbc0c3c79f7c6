"""LTX-2, video with sound: a network of two samples and two predictions; up to four evaluations a step.

The two branches of classifier-free guidance are one batch; perturbed layers and isolated modalities are calls of their
own.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
)
from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2Vocoder

from zoo.parts import assemble, embeddings, enliven
from zoo.specimen import Specimen

TEXT, TEXT_LAYERS = 16, 3
SIZE, FRAMES = 32, 5


def ltx2() -> Any:
    """The pipeline; the text comes in as embeddings, of all layers of its encoder."""
    return assemble(
        LTX2Pipeline,
        transformer=enliven(_transformer()),
        connectors=enliven(_connectors(), seed=1),
        vae=enliven(_video_vae(), seed=2),
        audio_vae=enliven(_audio_vae(), seed=3),
        vocoder=_vocoder(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )


def _transformer() -> Any:
    return LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        patch_size=1,
        patch_size_t=1,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=2,
        caption_channels=TEXT,
        rope_double_precision=False,
        rope_type="split",
    )


def _connectors() -> Any:
    return LTX2TextConnectors(
        caption_channels=TEXT,
        text_proj_in_factor=TEXT_LAYERS,
        video_connector_num_attention_heads=2,
        video_connector_attention_head_dim=8,
        video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=2,
        audio_connector_attention_head_dim=8,
        audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None,
        connector_rope_base_seq_len=32,
        rope_theta=10000.0,
        rope_double_precision=False,
        causal_temporal_positioning=False,
        rope_type="split",
    )


def _video_vae() -> Any:
    return AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8,),
        decoder_block_out_channels=(8,),
        layers_per_block=(1,),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatial",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )


def _audio_vae() -> Any:
    return AutoencoderKLLTX2Audio(
        base_channels=4,
        output_channels=2,
        ch_mult=(1,),
        num_res_blocks=1,
        attn_resolutions=None,
        in_channels=2,
        resolution=32,
        latent_channels=2,
        norm_type="pixel",
        causality_axis="height",
        dropout=0.0,
        mid_block_add_attention=False,
        sample_rate=16000,
        mel_hop_length=160,
        is_causal=True,
        mel_bins=8,
    )


def _vocoder() -> Any:
    return LTX2Vocoder(
        in_channels=16,
        hidden_channels=32,
        out_channels=2,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        leaky_relu_negative_slope=0.1,
        output_sampling_rate=16000,
    )


def _guided(**others: Any) -> dict[str, Any]:
    words = torch.ones(1, 8, dtype=torch.long)
    return {
        "prompt_embeds": embeddings(1, 8, TEXT * TEXT_LAYERS),
        "prompt_attention_mask": words,
        "negative_prompt_embeds": embeddings(1, 8, TEXT * TEXT_LAYERS, seed=2),
        "negative_prompt_attention_mask": words,
        "guidance_scale": 3.0,
        "audio_guidance_scale": 5.0,
        "stg_scale": 0.0,
        "audio_stg_scale": 0.0,
        "modality_scale": 1.0,
        "audio_modality_scale": 1.0,
        "spatio_temporal_guidance_blocks": None,
        "height": SIZE,
        "width": SIZE,
        "num_frames": FRAMES,
    } | others


def _four_evaluations() -> dict[str, Any]:
    perturbed = {"stg_scale": 1.0, "audio_stg_scale": 1.0, "spatio_temporal_guidance_blocks": [1]}
    return _guided(**perturbed, modality_scale=3.0, audio_modality_scale=3.0)


SPECIMENS = (
    Specimen("LTX2Pipeline", ltx2, _guided, output="frames"),
    Specimen("LTX2Pipeline:four-evaluations", ltx2, _four_evaluations, "branches", "frames"),
)
