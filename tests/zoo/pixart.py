"""PixArt-Alpha and PixArt-Sigma, this one with perturbed attention too."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import PixArtTransformer2DModel

from support.pipelines import SIZE, TEXT_TOKENS, TEXT_WIDTH, image_vae, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def pixart(name: str) -> Any:
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        sample_size=SIZE // 2,
        num_layers=3,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=TEXT_WIDTH,
        cross_attention_dim=16,
        in_channels=4,
        out_channels=8,
    )
    return quiet(
        getattr(diffusers, name)(
            transformer=awake(transformer, "caption_projection.linear_2", "attn1.to_v", "attn1.to_out.0"),
            scheduler=diffusers.DPMSolverMultistepScheduler(),
            vae=image_vae(),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
        )
    )


def call() -> dict[str, Any]:
    settings = {"clean_caption": False, "use_resolution_binning": False, "max_sequence_length": TEXT_TOKENS}
    return calls.text() | settings


SPECIMENS = (
    *(Specimen(name, partial(pixart, name), call) for name in ("PixArtAlphaPipeline", "PixArtSigmaPipeline")),
    Specimen(
        "PixArtSigmaPAGPipeline",
        partial(pixart, "PixArtSigmaPAGPipeline"),
        calls.with_arguments(call, pag_scale=2.0),
        layout="branches",
    ),
)
