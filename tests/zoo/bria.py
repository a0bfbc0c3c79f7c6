"""Bria 3.2, whose latents are packed."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import BriaPipeline, BriaTransformer2DModel

from support.pipelines import SCHEDULERS, TEXT_TOKENS, TEXT_WIDTH, image_vae, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def bria() -> Any:
    torch.manual_seed(0)
    transformer = BriaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=[0, 4, 4],
    )
    return quiet(
        BriaPipeline(
            transformer=awake(transformer, "attn.add_v_proj", "attn.to_v", "attn.to_out.0"),
            scheduler=SCHEDULERS["flow-euler"](),
            vae=image_vae(shift_factor=0),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
            image_encoder=None,
            feature_extractor=None,
        )
    )


SPECIMENS = (Specimen("BriaPipeline", bria, calls.with_arguments(calls.text, max_sequence_length=TEXT_TOKENS)),)
