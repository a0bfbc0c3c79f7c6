"""ERNIE-Image: both branches in one batch, the unconditional one first, texts of different length padded."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)

from support.pipelines import SIZE
from zoo.parts import assemble, embeddings, enliven
from zoo.specimen import Specimen

TEXT = 16


def ernie_image() -> Any:
    """The pipeline; the text comes in as embeddings."""
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=16,
        out_channels=16,
        patch_size=1,
        text_in_dim=TEXT,
        rope_axes_dim=(8, 4, 4),
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIZE,
    )
    return assemble(
        ErnieImagePipeline,
        transformer=enliven(transformer),
        vae=enliven(vae, seed=1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        tokenizer=None,
    )


def _guided() -> dict[str, Any]:
    texts: dict[str, list[torch.Tensor]] = {
        "prompt_embeds": [embeddings(8, TEXT)],
        "negative_prompt_embeds": [embeddings(6, TEXT, seed=2)],
    }
    return {**texts, "guidance_scale": 4.0, "height": SIZE, "width": SIZE}


SPECIMENS = (Specimen("ErnieImagePipeline", ernie_image, _guided),)
