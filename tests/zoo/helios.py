"""Helios: a video in chunks, each a loop of its own; a conditional call, then an unconditional one."""

from __future__ import annotations

from typing import Any

from diffusers import HeliosPipeline, HeliosScheduler, HeliosTransformer3DModel

from zoo.parts import assemble, embeddings, enliven, wan_vae
from zoo.specimen import Specimen

TEXT = 32
SIZE, FRAMES = 32, 18  # two chunks of three frames of latents


def helios() -> Any:
    """The pipeline; the text comes in as embeddings."""
    transformer = HeliosTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_dim=(4, 4, 4),
    )
    return assemble(
        HeliosPipeline,
        transformer=enliven(transformer),
        vae=wan_vae(),
        scheduler=HeliosScheduler(stage_range=[0, 1], stages=1, use_dynamic_shifting=True),
        text_encoder=None,
        tokenizer=None,
    )


def _guided() -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(1, 12, TEXT),
        "negative_prompt_embeds": embeddings(1, 12, TEXT, seed=2),
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
        "num_frames": FRAMES,
        "num_latent_frames_per_chunk": 3,
        "history_sizes": [4, 2, 1],
    }


SPECIMENS = (Specimen("HeliosPipeline", helios, _guided, "sequential", "frames"),)
