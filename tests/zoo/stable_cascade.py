"""The decoder of Stable Cascade."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMWuerstchenScheduler, StableCascadeDecoderPipeline
from diffusers.models import StableCascadeUNet
from diffusers.pipelines.deprecated.wuerstchen.modeling_paella_vq_model import PaellaVQModel
from transformers import CLIPTextModelWithProjection

from support.pipelines import TEXT_WIDTH, clip_text_encoder, clip_tokenizer, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def cascade() -> Any:
    torch.manual_seed(0)
    residual = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
    decoder = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=32,
        block_out_channels=(16, 32),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(residual, (*residual, "SDCascadeAttnBlock")),
        clip_text_pooled_in_channels=TEXT_WIDTH,
        effnet_in_channels=4,
        switch_level=None,
        dropout=(0.0, 0.0),
    )
    return quiet(
        StableCascadeDecoderPipeline(
            decoder=awake(decoder, "clip_txt_pooled_mapper"),
            vqgan=PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=4, embed_dim=16, latent_channels=4),
            tokenizer=clip_tokenizer(),
            text_encoder=clip_text_encoder(CLIPTextModelWithProjection),
            scheduler=DDPMWuerstchenScheduler(),
            latent_dim_scale=4.0,
        )
    )


def call() -> dict[str, Any]:
    return calls.TEXT | {"image_embeddings": text.embeddings(1, 4, 4, 4, seed=1)}


SPECIMENS = (Specimen("StableCascadeDecoderPipeline", cascade, call, layout="positive-first"),)
