"""HiDream-I1, with four text encoders and a mixture of experts."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HiDreamImagePipeline, HiDreamImageTransformer2DModel
from transformers import CLIPTextModelWithProjection

from support.pipelines import (
    SCHEDULERS,
    SIZE,
    TEXT_TOKENS,
    TEXT_WIDTH,
    clip_text_encoder,
    clip_tokenizer,
    image_vae,
    quiet,
)
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def hidream() -> Any:
    torch.manual_seed(0)
    transformer = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[TEXT_WIDTH, TEXT_WIDTH],
        text_emb_dim=2 * TEXT_WIDTH,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(SIZE, SIZE),
        llama_layers=[0, 1, 1],
    )
    pipe = quiet(
        HiDreamImagePipeline(
            transformer=awake(transformer, "to_v", "to_v_t", "to_out"),
            scheduler=SCHEDULERS["flow-euler"](),
            vae=image_vae(shift_factor=0.1),
            tokenizer=clip_tokenizer(),
            tokenizer_2=clip_tokenizer(),
            tokenizer_3=text.spelling_tokenizer(),
            tokenizer_4=text.spelling_tokenizer(),
            text_encoder=clip_text_encoder(CLIPTextModelWithProjection),
            text_encoder_2=clip_text_encoder(CLIPTextModelWithProjection),
            text_encoder_3=text.t5_encoder(),
            text_encoder_4=text.gemma2(),
        )
    )
    pipe.default_sample_size = SIZE // 2  # it scales every image to the area of this
    return pipe


SPECIMENS = (
    Specimen("HiDreamImagePipeline", hidream, calls.with_arguments(calls.text, max_sequence_length=TEXT_TOKENS)),
)
