"""CogVideoX: from text, from an image, from a film."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel

from support import pipelines
from support.pipelines import TEXT_TOKENS, TEXT_WIDTH, quiet
from zoo import calls, text
from zoo.films import causal_vae, film
from zoo.networks import awake
from zoo.specimen import Specimen

PIXELS = 64
FRAMES = 9  # three latent ones


def cogvideox(name: str, in_channels: int = 4, rotary: bool = False) -> Any:
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=in_channels,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=TEXT_WIDTH,
        num_layers=2,
        sample_width=PIXELS // 8,
        sample_height=PIXELS // 8,
        sample_frames=FRAMES,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=TEXT_TOKENS,
        use_rotary_positional_embeddings=rotary,
        use_learned_positional_embeddings=rotary,
    )
    scheduler = CogVideoXDDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    return quiet(
        getattr(diffusers, name)(
            transformer=awake(transformer, "patch_embed.text_proj", "attn1.to_v", "attn1.to_out.0"),
            scheduler=scheduler,
            vae=causal_vae(),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
        )
    )


def call() -> dict[str, Any]:
    sizes = {"height": PIXELS, "width": PIXELS, "max_sequence_length": TEXT_TOKENS}
    return calls.TEXT | sizes


def text_alone() -> dict[str, Any]:
    return call() | {"num_frames": FRAMES}


def text_and_image() -> dict[str, Any]:
    return text_alone() | {"image": pipelines.start_image()}


def text_and_film() -> dict[str, Any]:
    return call() | {"video": film(FRAMES), "strength": 0.8}


def specimen(name: str, call: Any, **settings: Any) -> Specimen:
    return Specimen(name, partial(cogvideox, name, **settings), call, output="frames")


SPECIMENS = (
    specimen("CogVideoXPipeline", text_alone),
    specimen("CogVideoXImageToVideoPipeline", text_and_image, in_channels=8, rotary=True),
    specimen("CogVideoXVideoToVideoPipeline", text_and_film),
)
