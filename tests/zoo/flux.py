"""The FLUX family: with true guidance (a second call for the negative prompt), and without it, distilled."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import FluxControlNetModel, FluxTransformer2DModel
from transformers import CLIPTextModel

from support.pipelines import SIZE, TEXT_TOKENS, TEXT_WIDTH, clip_text_encoder, clip_tokenizer, mask, start_image
from zoo import text
from zoo.parts import assemble, dynamic_flow, embeddings, enliven, image_vae
from zoo.specimen import Specimen

TEXT = 32
POOLED = TEXT_WIDTH

_WIDTHS: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "pooled_projection_dim": POOLED,
    "axes_dims_rope": [4, 4, 8],
}


def flux(pipeline: str, guidance_embeds: bool = False, **others: Any) -> Any:
    """A pipeline of the family."""
    return assemble(
        getattr(diffusers, pipeline),
        transformer=enliven(FluxTransformer2DModel(**_WIDTHS, guidance_embeds=guidance_embeds)),
        vae=image_vae(),
        scheduler=dynamic_flow(),
        text_encoder=clip_text_encoder(CLIPTextModel),
        text_encoder_2=text.t5_encoder(TEXT),
        tokenizer=clip_tokenizer(),
        tokenizer_2=text.spelling_tokenizer(),
        **others,
    )


def _controlnet() -> torch.nn.Module:
    return enliven(FluxControlNetModel(**_WIDTHS), gain=0.5, seed=2)


def _positive() -> dict[str, Any]:
    return {"prompt_embeds": embeddings(1, 8, TEXT), "pooled_prompt_embeds": embeddings(1, POOLED, seed=2)}


def _distilled(**others: Any) -> dict[str, Any]:
    return _positive() | {"height": SIZE, "width": SIZE, "guidance_scale": 3.5} | others


def _guided(**others: Any) -> dict[str, Any]:
    negative = {
        "negative_prompt_embeds": embeddings(1, 8, TEXT, seed=3),
        "negative_pooled_prompt_embeds": embeddings(1, POOLED, seed=4),
        "true_cfg_scale": 4.0,
    }
    return _positive() | negative | {"height": SIZE, "width": SIZE} | others


def _of_words() -> dict[str, Any]:
    words = {"prompt": "a red ring", "negative_prompt": "blurred", "max_sequence_length": TEXT_TOKENS}
    return words | {"true_cfg_scale": 4.0, "height": SIZE, "width": SIZE}


SPECIMENS = (
    Specimen("FluxPipeline", lambda: flux("FluxPipeline"), _of_words, "sequential"),
    Specimen(
        "FluxPipeline:distilled",
        lambda: flux("FluxPipeline", guidance_embeds=True),
        _distilled,
        "single",
    ),
    Specimen(
        "FluxImg2ImgPipeline",
        lambda: flux("FluxImg2ImgPipeline"),
        lambda: _guided(image=start_image(), strength=0.8),
        "sequential",
    ),
    Specimen(
        "FluxInpaintPipeline",
        lambda: flux("FluxInpaintPipeline"),
        lambda: _guided(image=start_image(), mask_image=mask(), strength=0.8),
        "sequential",
    ),
    Specimen(
        "FluxControlNetPipeline",
        lambda: flux("FluxControlNetPipeline", controlnet=_controlnet()),
        lambda: _guided(control_image=start_image(), controlnet_conditioning_scale=0.7),
        "sequential",
    ),
    Specimen(
        "FluxControlNetImg2ImgPipeline",
        lambda: flux("FluxControlNetImg2ImgPipeline", guidance_embeds=True, controlnet=_controlnet()),
        lambda: _distilled(image=start_image(), control_image=start_image(), strength=0.8),
        "single",
    ),
    Specimen(
        "FluxKontextPipeline",
        lambda: flux("FluxKontextPipeline"),
        lambda: _guided(image=start_image(), max_area=SIZE * SIZE, _auto_resize=False),
        "sequential",
    ),
    Specimen(
        "FluxKontextInpaintPipeline",
        lambda: flux("FluxKontextInpaintPipeline"),
        lambda: _guided(image=start_image(), mask_image=mask(), strength=0.8, max_area=SIZE * SIZE, _auto_resize=False),
        "sequential",
    ),
)
