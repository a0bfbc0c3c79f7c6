"""Lumina 2: a conditional call, then an unconditional one, the latter only in part of the steps if so asked."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel

from zoo.parts import assemble, embeddings, enliven, image_vae
from zoo.specimen import Specimen

TEXT = 16
SIZE = 64  # the pipeline counts 8 pixels a latent, whatever the VAE


def lumina2() -> Any:
    """The pipeline; the text comes in as embeddings."""
    transformer = Lumina2Transformer2DModel(
        sample_size=SIZE // 8,
        patch_size=2,
        in_channels=4,
        hidden_size=16,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=[4, 2, 2],
        cap_feat_dim=TEXT,
    )
    return assemble(
        Lumina2Pipeline,
        transformer=enliven(transformer),
        vae=image_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0),
        text_encoder=None,
        tokenizer=None,
    )


def _guided(**others: Any) -> dict[str, Any]:
    words = torch.arange(8)[None]
    return {
        "prompt_embeds": embeddings(1, 8, TEXT),
        "prompt_attention_mask": (words < 7).long(),
        "negative_prompt_embeds": embeddings(1, 8, TEXT, seed=2),
        "negative_prompt_attention_mask": (words < 5).long(),
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
    } | others


SPECIMENS = (
    Specimen("Lumina2Pipeline", lumina2, _guided, "sequential"),
    Specimen("Lumina2Pipeline:truncated", lumina2, lambda: _guided(cfg_trunc_ratio=0.5), "sequential"),
)
