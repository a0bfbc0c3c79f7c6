"""Chroma: FLUX without distillation; a conditional call, then an unconditional one with another mask."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler

from support.pipelines import SIZE, mask, start_image
from zoo.parts import assemble, embeddings, enliven, image_vae
from zoo.specimen import Specimen

TEXT = 32


def chroma(pipeline: str) -> Any:
    """A pipeline of the family; the text comes in as embeddings."""
    transformer = ChromaTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        axes_dims_rope=[4, 4, 8],
        approximator_hidden_dim=32,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    transformer.register_to_config(guidance_embeds=False)  # as published checkpoints have it; inpainting reads it
    return assemble(
        getattr(diffusers, pipeline),
        transformer=enliven(transformer),
        vae=image_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_encoder=None,
        tokenizer=None,
    )


def _mask(words: int) -> torch.Tensor:
    return (torch.arange(8) < words).float()[None]


def _guided(**others: Any) -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(1, 8, TEXT),
        "prompt_attention_mask": _mask(7),
        "negative_prompt_embeds": embeddings(1, 8, TEXT, seed=2),
        "negative_prompt_attention_mask": _mask(5),
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
    } | others


SPECIMENS = (
    Specimen("ChromaPipeline", lambda: chroma("ChromaPipeline"), _guided, "sequential"),
    Specimen(
        "ChromaImg2ImgPipeline",
        lambda: chroma("ChromaImg2ImgPipeline"),
        lambda: _guided(image=start_image(), strength=0.8),
        "sequential",
    ),
    Specimen(
        "ChromaInpaintPipeline",
        lambda: chroma("ChromaInpaintPipeline"),
        lambda: _guided(image=start_image(), mask_image=mask(), strength=0.8),
        "sequential",
    ),
)
