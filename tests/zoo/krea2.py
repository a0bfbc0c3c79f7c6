"""Krea 2: a conditional call, then an unconditional one; guidance adds to the conditional prediction."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Krea2Pipeline, Krea2Transformer2DModel

from support.pipelines import SIZE
from zoo.parts import assemble, dynamic_flow, embeddings, enliven
from zoo.qwen_image import qwen_vae
from zoo.specimen import Specimen

TEXT, LAYERS = 16, 3


def krea2() -> Any:
    """The pipeline; the text comes in as embeddings, of several layers of its encoder."""
    transformer = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=8,
        text_hidden_dim=TEXT,
        num_text_layers=LAYERS,
        text_num_attention_heads=2,
        text_num_key_value_heads=1,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
        rope_theta=1000.0,
    )
    return assemble(
        Krea2Pipeline,
        transformer=enliven(transformer),
        vae=qwen_vae(),
        scheduler=dynamic_flow(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_select_layers=tuple(range(LAYERS)),
    )


def _guided() -> dict[str, Any]:
    words = torch.arange(8)[None]
    return {
        "prompt_embeds": embeddings(1, 8, LAYERS, TEXT),
        "prompt_embeds_mask": words < 7,
        "negative_prompt_embeds": embeddings(1, 8, LAYERS, TEXT, seed=2),
        "negative_prompt_embeds_mask": words < 5,
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
    }


SPECIMENS = (Specimen("Krea2Pipeline", krea2, _guided, "sequential"),)
