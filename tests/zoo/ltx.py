"""LTX-Video: from text, from an image."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

from support import pipelines
from support.pipelines import SCHEDULERS, TEXT_TOKENS, TEXT_WIDTH, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def vae() -> Any:
    torch.manual_seed(1)
    return AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
    )


def ltx(name: str) -> Any:
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=TEXT_WIDTH,
    )
    return quiet(
        getattr(diffusers, name)(
            transformer=awake(transformer, "caption_projection.linear_2", "attn2.to_out.0"),
            scheduler=SCHEDULERS["flow-euler"](),
            vae=vae(),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
        )
    )


def call() -> dict[str, Any]:
    return calls.text() | {"num_frames": 9, "max_sequence_length": TEXT_TOKENS}


def with_image() -> dict[str, Any]:
    return call() | {"image": pipelines.start_image()}


SPECIMENS = (
    Specimen("LTXPipeline", partial(ltx, "LTXPipeline"), call, output="frames"),
    Specimen("LTXConditionPipeline", partial(ltx, "LTXConditionPipeline"), with_image, output="frames"),
    Specimen("LTXImageToVideoPipeline", partial(ltx, "LTXImageToVideoPipeline"), with_image, output="frames"),
)
