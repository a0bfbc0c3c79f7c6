"""The Wan family, videos: 2.1 with one transformer, 2.2 with one for high and one for low noise."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

from support.pipelines import TEXT_TOKENS, mask, start_image
from zoo import text
from zoo.parts import assemble, embeddings, enliven, flow_unipc, wan_vae
from zoo.specimen import Specimen

TEXT = 32
SIZE, FRAMES = 32, 5  # 4 x 4 latents, 2 frames of them


def wan(pipeline: str, in_channels: int = 16, image_width: int | None = None, **others: Any) -> Any:
    """A pipeline of the family."""
    parts = {
        "transformer": transformer(in_channels, image_width),
        "vae": wan_vae(),
        "scheduler": flow_unipc(),
        "text_encoder": text.t5_encoder(TEXT, multilingual=True),
        "tokenizer": text.spelling_tokenizer(),
    }
    return assemble(getattr(diffusers, pipeline), **parts | others)


_WIDTHS: dict[str, Any] = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "out_channels": 16,
    "text_dim": TEXT,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}


def transformer(in_channels: int = 16, image_width: int | None = None, seed: int = 0) -> Any:
    """The network of Wan, two layers of it."""
    network = WanTransformer3DModel(**_WIDTHS, in_channels=in_channels, image_dim=image_width)
    return enliven(network, seed=seed)


def _controlled() -> Any:
    network = WanVACETransformer3DModel(**_WIDTHS, in_channels=16, vace_layers=[0], vace_in_channels=96)
    return wan("WanVACEPipeline", transformer=enliven(network))


def image_encoder() -> dict[str, Any]:
    """A CLIP for the first frame, and what prepares its images."""
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=16
    )
    processor = CLIPImageProcessor(crop_size=SIZE, size=SIZE)
    return {"image_encoder": enliven(CLIPVisionModel(config)), "image_processor": processor}


def wan_call(**others: Any) -> dict[str, Any]:
    """A guided call; the text comes in as embeddings."""
    return {
        "prompt_embeds": embeddings(1, 12, TEXT),
        "negative_prompt_embeds": embeddings(1, 12, TEXT, seed=2),
        "guidance_scale": 5.0,
        "height": SIZE,
        "width": SIZE,
    } | others


def _of_words() -> dict[str, Any]:
    words = {"prompt": "a red ring", "negative_prompt": "blurred", "max_sequence_length": TEXT_TOKENS}
    return words | {"guidance_scale": 5.0, "height": SIZE, "width": SIZE, "num_frames": FRAMES}


def _of_image(**others: Any) -> dict[str, Any]:
    return wan_call(image=start_image(), num_frames=FRAMES, **others)


SPECIMENS = (
    Specimen("WanPipeline", lambda: wan("WanPipeline"), _of_words, "sequential", "frames"),
    Specimen(
        "WanPipeline:two-transformers",
        lambda: wan("WanPipeline", transformer_2=transformer(seed=3), boundary_ratio=0.875),
        lambda: wan_call(num_frames=FRAMES, guidance_scale_2=3.0),
        "sequential",
        "frames",
    ),
    Specimen(
        "WanPipeline:timesteps-a-token",
        lambda: wan("WanPipeline", expand_timesteps=True),
        lambda: wan_call(num_frames=FRAMES),
        "sequential",
        "frames",
    ),
    Specimen(
        "WanImageToVideoPipeline",
        lambda: wan("WanImageToVideoPipeline", 36, image_width=8, **image_encoder()),
        _of_image,
        "sequential",
        "frames",
    ),
    Specimen(
        "WanImageToVideoPipeline:two-transformers",
        lambda: wan("WanImageToVideoPipeline", 36, transformer_2=transformer(36, seed=3), boundary_ratio=0.9),
        lambda: _of_image(guidance_scale_2=3.0),
        "sequential",
        "frames",
    ),
    Specimen(
        "WanVideoToVideoPipeline",
        lambda: wan("WanVideoToVideoPipeline"),
        lambda: wan_call(video=[start_image()] * FRAMES, strength=0.8),
        "sequential",
        "frames",
    ),
    Specimen(
        "WanVACEPipeline",
        _controlled,
        lambda: wan_call(
            video=[start_image()] * FRAMES, mask=[mask()] * FRAMES, num_frames=FRAMES, conditioning_scale=0.8
        ),
        "sequential",
        "frames",
    ),
)
