"""PRX: both branches in one batch, the unconditional one first."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, PRXPipeline, PRXTransformer2DModel

from support.pipelines import SIZE
from zoo.parts import assemble, embeddings, enliven, image_vae
from zoo.specimen import Specimen

TEXT = 16


def prx() -> Any:
    """The pipeline; the text comes in as embeddings."""
    transformer = PRXTransformer2DModel(
        patch_size=2,
        in_channels=4,
        context_in_dim=TEXT,
        hidden_size=16,
        mlp_ratio=2.0,
        num_heads=2,
        depth=2,
        axes_dim=[4, 4],
    )
    return assemble(
        PRXPipeline,
        transformer=enliven(transformer),
        vae=image_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        tokenizer=None,
    )


def _guided() -> dict[str, Any]:
    words = torch.arange(8)[None]
    return {
        "prompt_embeds": embeddings(1, 8, TEXT),
        "prompt_attention_mask": words < 7,
        "negative_prompt_embeds": embeddings(1, 8, TEXT, seed=2),
        "negative_prompt_attention_mask": words < 5,
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
        "use_resolution_binning": False,
    }


SPECIMENS = (Specimen("PRXPipeline", prx, _guided),)
