"""NucleusMoE-Image: a conditional, then an unconditional call; experts choose tokens, so a batch is not its rows."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import NucleusMoEImagePipeline, NucleusMoEImageTransformer2DModel

from support.pipelines import SIZE
from zoo.parts import assemble, dynamic_flow, embeddings, enliven
from zoo.qwen_image import qwen_vae
from zoo.specimen import Specimen

TEXT = 16


def nucleus_moe() -> Any:
    """The pipeline; the text comes in as embeddings."""
    transformer = NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=4,
        attention_head_dim=16,
        num_attention_heads=4,
        joint_attention_dim=TEXT,
        axes_dims_rope=(8, 4, 4),
        num_experts=4,
        moe_intermediate_dim=32,
        capacity_factors=[2.0] * 4,
        dense_moe_strategy="leave_first_block_dense",
    )
    return assemble(
        NucleusMoEImagePipeline,
        transformer=enliven(transformer),
        vae=qwen_vae(),
        scheduler=dynamic_flow(),
        text_encoder=None,
        processor=None,
    )


def _guided() -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(1, 8, TEXT),
        "prompt_embeds_mask": torch.ones(1, 8, dtype=torch.long),
        "negative_prompt_embeds": embeddings(1, 6, TEXT, seed=2),
        "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
    }


SPECIMENS = (Specimen("NucleusMoEImagePipeline", nucleus_moe, _guided, "sequential"),)
