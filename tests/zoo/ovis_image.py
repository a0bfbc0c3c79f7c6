"""Ovis-Image: a conditional call, then an unconditional one."""

from __future__ import annotations

from typing import Any

from diffusers import OvisImagePipeline, OvisImageTransformer2DModel

from support.pipelines import SIZE
from zoo.parts import assemble, dynamic_flow, embeddings, enliven, image_vae
from zoo.specimen import Specimen

TEXT = 32


def ovis_image() -> Any:
    """The pipeline; the text comes in as embeddings."""
    transformer = OvisImageTransformer2DModel(
        patch_size=1,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=(4, 4, 8),
    )
    return assemble(
        OvisImagePipeline,
        transformer=enliven(transformer),
        vae=image_vae(),
        scheduler=dynamic_flow(),
        text_encoder=None,
        tokenizer=None,
    )


def _guided() -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(1, 8, TEXT),
        "negative_prompt_embeds": embeddings(1, 8, TEXT, seed=2),
        "negative_prompt": None,
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
    }


SPECIMENS = (Specimen("OvisImagePipeline", ovis_image, _guided, "sequential"),)
