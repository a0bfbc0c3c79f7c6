"""SkyReels V2, kin of Wan: a conditional, then an unconditional call; diffusion forcing has a time for each frame."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import SkyReelsV2Transformer3DModel, UniPCMultistepScheduler

from support.pipelines import start_image
from zoo.parts import assemble, embeddings, enliven, wan_vae
from zoo.specimen import Specimen
from zoo.wan import image_encoder

TEXT = 32
SIZE, FRAMES = 32, 5


def skyreels(pipeline: str, in_channels: int = 16, image_width: int | None = None, **others: Any) -> Any:
    """A pipeline of the family; the text comes in as embeddings."""
    transformer = SkyReelsV2Transformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=16,
        text_dim=TEXT,
        freq_dim=32,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
        image_dim=image_width,
    )
    return assemble(
        getattr(diffusers, pipeline),
        transformer=enliven(transformer),
        vae=wan_vae(),
        scheduler=UniPCMultistepScheduler(flow_shift=8.0, use_flow_sigmas=True, prediction_type="flow_prediction"),
        text_encoder=None,
        tokenizer=None,
        **others,
    )


def _guided(**others: Any) -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(1, 12, TEXT),
        "negative_prompt_embeds": embeddings(1, 12, TEXT, seed=2),
        "guidance_scale": 5.0,
        "height": SIZE,
        "width": SIZE,
        "num_frames": FRAMES,
    } | others


SPECIMENS = (
    Specimen("SkyReelsV2Pipeline", lambda: skyreels("SkyReelsV2Pipeline"), _guided, "sequential", "frames"),
    Specimen(
        "SkyReelsV2DiffusionForcingPipeline",
        lambda: skyreels("SkyReelsV2DiffusionForcingPipeline"),
        lambda: _guided(prompt=None, base_num_frames=FRAMES),
        "sequential",
        "frames",
    ),
    Specimen(
        "SkyReelsV2ImageToVideoPipeline",
        lambda: skyreels("SkyReelsV2ImageToVideoPipeline", 36, image_width=8, **image_encoder()),
        lambda: _guided(image=start_image()),
        "sequential",
        "frames",
    ),
)
