"""Sana Video, with the autoencoder of Wan."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLWan, DPMSolverMultistepScheduler, SanaVideoPipeline, SanaVideoTransformer3DModel

from support.pipelines import TEXT_TOKENS, TEXT_WIDTH, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def sana_video() -> Any:
    torch.manual_seed(0)
    transformer = SanaVideoTransformer3DModel(
        in_channels=16,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=TEXT_WIDTH,
        sample_size=8,
        rope_max_seq_len=32,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return quiet(
        SanaVideoPipeline(
            transformer=awake(transformer, "caption_projection.linear_2"),
            scheduler=DPMSolverMultistepScheduler(
                use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
            ),
            vae=vae,
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.gemma2(),
        )
    )


def call() -> dict[str, Any]:
    sizes = {"height": 64, "width": 64, "frames": 9, "max_sequence_length": TEXT_TOKENS}
    return calls.TEXT | sizes | {"complex_human_instruction": [], "use_resolution_binning": False}


SPECIMENS = (Specimen("SanaVideoPipeline", sana_video, call, output="frames"),)
