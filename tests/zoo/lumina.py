"""Lumina-Next and Lumina 2."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import Lumina2Pipeline, Lumina2Transformer2DModel, LuminaNextDiT2DModel, LuminaPipeline

from support.pipelines import SCHEDULERS, SIZE, TEXT_TOKENS, TEXT_WIDTH, image_vae, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def lumina() -> Any:
    torch.manual_seed(0)
    transformer = LuminaNextDiT2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=3,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        learn_sigma=True,
        qk_norm=True,
        cross_attention_dim=TEXT_WIDTH,
    )
    return _pipeline(LuminaPipeline, awake(transformer))


def lumina2() -> Any:
    torch.manual_seed(0)
    transformer = Lumina2Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=4,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=2,
        multiple_of=16,
        axes_dim_rope=(8, 4, 4),
        axes_lens=(64, 64, 64),
        cap_feat_dim=TEXT_WIDTH,
    )
    return _pipeline(Lumina2Pipeline, awake(transformer))


def _pipeline(pipeline: Any, transformer: Any) -> Any:
    return quiet(
        pipeline(
            transformer=transformer,
            scheduler=SCHEDULERS["flow-euler"](),
            vae=image_vae(levels=4, shift_factor=0.06),
            tokenizer=text.spelling_tokenizer(length=64),
            text_encoder=text.gemma2(),
        )
    )


def call() -> dict[str, Any]:
    """A call for 16 x 16 latents: the pipelines take for granted that the autoencoder divides by 8."""
    return calls.text() | {"height": 128, "width": 128, "max_sequence_length": TEXT_TOKENS}


SPECIMENS = (
    Specimen("LuminaPipeline", lumina, calls.with_arguments(call, clean_caption=False), layout="positive-first"),
    Specimen("Lumina2Pipeline", lumina2, calls.with_arguments(call, system_prompt="paint"), layout="sequential"),
    Specimen(
        "Lumina2Pipeline:truncated",
        lumina2,
        calls.with_arguments(call, system_prompt="paint", cfg_trunc_ratio=0.5),
        layout="sequential",
    ),
)
