"""Stable Diffusion with loops of their own: self-attention guidance, and semantic guidance."""

from __future__ import annotations

from typing import Any

from support import pipelines
from zoo import calls
from zoo.networks import awake, with_parts_of
from zoo.specimen import Specimen


def attentive() -> Any:
    """Self-attention guidance: a third call sees latents that were blurred where the first attended most."""
    pipe = pipelines.sd15()
    awake(pipe.unet, "attn1.to_v", "attn1.to_out.0")
    return with_parts_of(pipe, "StableDiffusionSAGPipeline", image_encoder=None)


def blurred() -> dict[str, Any]:
    return calls.text() | {"sag_scale": 1.0}


def semantic() -> Any:
    """Semantic guidance: every editing prompt is one more branch of the call, used from its own step on."""
    return with_parts_of(pipelines.sd15(), "SemanticStableDiffusionPipeline")


def edited() -> dict[str, Any]:
    return calls.text() | {"editing_prompt": ["blue"], "edit_warmup_steps": 1, "edit_guidance_scale": 3.0}


SPECIMENS = (
    Specimen("StableDiffusionSAGPipeline", attentive, blurred, layout="branches"),
    Specimen("SemanticStableDiffusionPipeline", semantic, edited, layout="branches"),
)
