"""Motif-Video, whose guider asks for the calls."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, MotifVideoPipeline, MotifVideoTransformer3DModel
from diffusers.guiders import AdaptiveProjectedGuidance

from zoo.parts import assemble, embeddings, enliven, wan_vae
from zoo.specimen import Specimen

TEXT = 32
SIZE, FRAMES = 32, 5


def motif_video() -> Any:
    """The pipeline; the text comes in as embeddings."""
    transformer = MotifVideoTransformer3DModel(
        in_channels=33,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        patch_size=1,
        patch_size_t=1,
        text_embed_dim=TEXT,
        rope_axes_dim=(4, 4, 4),
    )
    return assemble(
        MotifVideoPipeline,
        transformer=enliven(transformer),
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=None,
        tokenizer=None,
        guider=AdaptiveProjectedGuidance(guidance_scale=6.0),
    )


def _guided() -> dict[str, Any]:
    words = torch.arange(8)[None]
    return {
        "prompt_embeds": embeddings(1, 8, TEXT),
        "prompt_attention_mask": (words < 7).long(),
        "negative_prompt_embeds": embeddings(1, 8, TEXT, seed=2),
        "negative_prompt_attention_mask": (words < 5).long(),
        "height": SIZE,
        "width": SIZE,
        "num_frames": FRAMES,
    }


SPECIMENS = (Specimen("MotifVideoPipeline", motif_video, _guided, "guider", "frames"),)
