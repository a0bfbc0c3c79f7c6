"""CogView4: a conditional call, then an unconditional one; its control variant has more channels of latents."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler

from support.pipelines import SIZE, start_image
from zoo.parts import assemble, embeddings, enliven, image_vae
from zoo.specimen import Specimen

TEXT = 16


def cogview4(pipeline: str = "CogView4Pipeline", in_channels: int = 4) -> Any:
    """A pipeline of the family; the text comes in as embeddings."""
    transformer = CogView4Transformer2DModel(
        patch_size=2,
        in_channels=in_channels,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=TEXT,
        time_embed_dim=8,
        condition_dim=4,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return assemble(
        getattr(diffusers, pipeline),
        transformer=enliven(transformer),
        vae=image_vae(),
        scheduler=scheduler,
        text_encoder=None,
        tokenizer=None,
    )


def _guided(**others: Any) -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(1, 16, TEXT),
        "negative_prompt_embeds": embeddings(1, 16, TEXT, seed=2),
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
    } | others


SPECIMENS = (
    Specimen("CogView4Pipeline", cogview4, _guided, "sequential"),
    Specimen(
        "CogView4ControlPipeline",
        lambda: cogview4("CogView4ControlPipeline", in_channels=8),
        lambda: _guided(control_image=start_image()),
        "sequential",
    ),
)
