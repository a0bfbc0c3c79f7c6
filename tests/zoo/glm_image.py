"""GLM-Image: both calls have the same prior tokens; the unconditional one is told to drop them.

With an image to edit, both have a cache of the image's keys and values, whose mode is changed between the calls.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, GlmImagePipeline, GlmImageTransformer2DModel

from support.pipelines import start_image
from zoo.parts import assemble, embeddings, enliven, image_vae
from zoo.specimen import Specimen

TEXT, CODES = 16, 32
SIZE = 64


def glm_image() -> Any:
    """The pipeline; the glyphs come in as embeddings, the tokens of the language model as they are."""
    transformer = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=TEXT,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=CODES,
    )
    return assemble(
        GlmImagePipeline,
        transformer=enliven(transformer),
        vae=image_vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
        text_encoder=None,
        tokenizer=None,
        processor=None,
        vision_language_encoder=None,
    )


TOKENS = SIZE // 2 // 2  # in a row: pixels a latent, latents a patch


def _guided(**others: Any) -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(1, 6, TEXT),
        "negative_prompt_embeds": embeddings(1, 6, TEXT, seed=2),
        "prior_token_ids": _codes(7)[None],
        "guidance_scale": 3.0,
        "height": SIZE,
        "width": SIZE,
    } | others


def _codes(stride: int) -> torch.Tensor:
    return torch.arange(TOKENS**2) * stride % CODES


def _edit() -> dict[str, Any]:
    return _guided(
        image=[start_image().resize((SIZE, SIZE))],
        prior_token_image_ids=[_codes(5)],
        source_image_grid_thw=[torch.tensor([[1, TOKENS, TOKENS]])],
    )


SPECIMENS = (
    Specimen("GlmImagePipeline", glm_image, _guided, "sequential"),
    Specimen("GlmImagePipeline:edit", glm_image, _edit, "sequential"),
)
