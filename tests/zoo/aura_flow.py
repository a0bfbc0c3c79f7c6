"""AuraFlow."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel

from support.pipelines import SCHEDULERS, SIZE, TEXT_TOKENS, TEXT_WIDTH, image_vae, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def aura_flow() -> Any:
    torch.manual_seed(0)
    transformer = AuraFlowTransformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=2,
        num_single_dit_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=TEXT_WIDTH,
        pos_embed_max_size=64,
    )
    return quiet(
        AuraFlowPipeline(
            transformer=awake(transformer, "attn.add_v_proj", "attn.to_v", "attn.to_out.0", "norm1.linear"),
            scheduler=SCHEDULERS["flow-euler"](),
            vae=image_vae(),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(multilingual=True),
        )
    )


SPECIMENS = (
    Specimen("AuraFlowPipeline", aura_flow, calls.with_arguments(calls.text, max_sequence_length=TEXT_TOKENS)),
)
