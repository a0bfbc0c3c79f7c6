"""Z-Image: samples, texts and predictions are lists of tensors, one a branch and image; the positive ones first."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

from support.pipelines import SIZE, start_image
from zoo.parts import assemble, embeddings, enliven, image_vae
from zoo.specimen import Specimen

TEXT = 16


def z_image(pipeline: str = "ZImagePipeline") -> Any:
    """A pipeline of the family; the text comes in as embeddings."""
    transformer = ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=4,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=TEXT,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    return assemble(
        getattr(diffusers, pipeline),
        transformer=enliven(transformer),
        vae=image_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        tokenizer=None,
    )


def _call(**others: Any) -> dict[str, Any]:
    return {
        "prompt_embeds": [embeddings(8, TEXT)],
        "negative_prompt_embeds": [embeddings(6, TEXT, seed=2)],
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
    } | others


def _two_images() -> dict[str, Any]:
    texts: dict[str, list[torch.Tensor]] = {
        "prompt_embeds": [embeddings(8, TEXT), embeddings(5, TEXT, seed=3)],
        "negative_prompt_embeds": [embeddings(6, TEXT, seed=2), embeddings(6, TEXT, seed=4)],
    }
    return _call(**texts)


SPECIMENS = (
    Specimen("ZImagePipeline", z_image, _call, "positive-first"),
    Specimen("ZImagePipeline:two-images", z_image, _two_images, "positive-first"),
    Specimen("ZImagePipeline:turbo", z_image, lambda: _call(guidance_scale=0.0), "single"),
    Specimen(
        "ZImageImg2ImgPipeline",
        lambda: z_image("ZImageImg2ImgPipeline"),
        lambda: _call(image=start_image(), strength=0.8),
        "positive-first",
    ),
)
