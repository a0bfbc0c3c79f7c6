"""Kandinsky 5: a conditional call, then an unconditional one, each with its own rotary positions of the text."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Kandinsky5Transformer3DModel

from support.pipelines import start_image
from zoo.hunyuan_video import video_vae
from zoo.parts import assemble, embeddings, enliven, image_vae
from zoo.specimen import Specimen

TEXT, POOLED = 16, 16


def kandinsky5(pipeline: str, vae: torch.nn.Module, starts_with_image: bool = False) -> Any:
    """A pipeline of the family; the text comes in as embeddings."""
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=TEXT,
        in_text_dim2=POOLED,
        time_dim=16,
        patch_size=(1, 2, 2),
        model_dim=16,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(1, 1, 2),
        visual_cond=starts_with_image,
        attention_type="regular",
    )
    return assemble(
        getattr(diffusers, pipeline),
        transformer=enliven(transformer),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
    )


def _text_to_image() -> Any:
    pipe = kandinsky5("Kandinsky5T2IPipeline", image_vae())
    pipe.resolutions = [(64, 64)]  # the pipeline takes one of these, whatever it is asked for
    return pipe


def _guided(**others: Any) -> dict[str, Any]:
    return {
        "prompt_embeds_qwen": embeddings(1, 8, TEXT),
        "prompt_embeds_clip": embeddings(1, POOLED, seed=2),
        "prompt_cu_seqlens": torch.tensor([0, 8]),
        "negative_prompt_embeds_qwen": embeddings(1, 6, TEXT, seed=3),
        "negative_prompt_embeds_clip": embeddings(1, POOLED, seed=4),
        "negative_prompt_cu_seqlens": torch.tensor([0, 6]),
        "guidance_scale": 4.0,
    } | others


SPECIMENS = (
    Specimen(
        "Kandinsky5T2VPipeline",
        lambda: kandinsky5("Kandinsky5T2VPipeline", video_vae()),
        lambda: _guided(height=32, width=32, num_frames=5),
        "sequential",
        "frames",
    ),
    Specimen(
        "Kandinsky5T2IPipeline",
        _text_to_image,
        lambda: _guided(height=64, width=64),
        "sequential",
        "image",
    ),
    Specimen(
        "Kandinsky5I2VPipeline",
        lambda: kandinsky5("Kandinsky5I2VPipeline", video_vae(), starts_with_image=True),
        lambda: _guided(image=start_image(), height=32, width=32, num_frames=21),
        "sequential",
        "frames",
    ),
)
