"""FLUX.2: distilled, so without a second branch, and Klein, with one."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

from support.pipelines import SIZE, mask, start_image
from zoo.parts import assemble, dynamic_flow, embeddings, enliven
from zoo.specimen import Specimen

TEXT = 16


def flux2(pipeline: str, guidance_embeds: bool) -> Any:
    """A pipeline of the family; the text comes in as embeddings."""
    transformer = Flux2Transformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=TEXT,
        timestep_guidance_channels=32,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=guidance_embeds,
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
        getattr(diffusers, pipeline),
        transformer=enliven(transformer),
        vae=enliven(vae, seed=1),
        scheduler=dynamic_flow(),
        text_encoder=None,
        tokenizer=None,
    )


def _call(**others: Any) -> dict[str, Any]:
    return {"prompt_embeds": embeddings(1, 8, TEXT), "guidance_scale": 4.0, "height": SIZE, "width": SIZE} | others


def _guided(**others: Any) -> dict[str, Any]:
    return _call(negative_prompt_embeds=embeddings(1, 8, TEXT, seed=2), **others)


SPECIMENS = (
    Specimen("Flux2Pipeline", lambda: flux2("Flux2Pipeline", True), _call, "single"),
    Specimen("Flux2KleinPipeline", lambda: flux2("Flux2KleinPipeline", False), _guided, "sequential"),
    Specimen(
        "Flux2KleinPipeline:edit",
        lambda: flux2("Flux2KleinPipeline", False),
        lambda: _guided(image=start_image().resize((64, 64))),  # no smaller one is taken
        "sequential",
    ),
    Specimen(
        "Flux2KleinInpaintPipeline",
        lambda: flux2("Flux2KleinInpaintPipeline", False),
        lambda: _guided(image=start_image().resize((64, 64)), mask_image=mask().resize((64, 64)), strength=0.8),
        "sequential",
    ),
)
