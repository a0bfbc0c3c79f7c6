"""CogView3-Plus."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline, CogView3PlusTransformer2DModel

from support.pipelines import SIZE, TEXT_TOKENS, TEXT_WIDTH, image_vae, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def cogview3() -> Any:
    torch.manual_seed(0)
    transformer = CogView3PlusTransformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=TEXT_WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
    )
    return quiet(
        CogView3PlusPipeline(
            transformer=awake(transformer, "patch_embed.text_proj"),
            scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing"),
            vae=image_vae(),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
        )
    )


SPECIMENS = (
    Specimen("CogView3PlusPipeline", cogview3, calls.with_arguments(calls.text, max_sequence_length=TEXT_TOKENS)),
)
