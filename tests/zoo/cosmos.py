"""Cosmos: a conditional call, its prediction made a sample or masked at once, then an unconditional call."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKLCosmos,
    ConfigMixin,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
)

from support.pipelines import SIZE, start_image
from zoo.parts import assemble, embeddings, enliven, flow_unipc, wan_vae
from zoo.specimen import Specimen

TEXT = 32


class NoGuardrail(ModelMixin, ConfigMixin):
    """In place of the guardrail, which is a large model: all is well."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))  # by which it has a device

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def cosmos(pipeline: str, in_channels: int = 16, **others: Any) -> Any:
    """A pipeline of the family; the text comes in as embeddings."""
    transformer = CosmosTransformer3DModel(
        in_channels=in_channels,
        out_channels=16,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=2,
        mlp_ratio=2,
        text_embed_dim=TEXT,
        adaln_lora_dim=4,
        max_size=(4, SIZE, SIZE),
        patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0),
        concat_padding_mask=False,  # resizing it takes torchvision
        extra_pos_embed_type="learnable",
    )
    parts = {
        "transformer": enliven(transformer),
        "vae": wan_vae(),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        "text_encoder": None,
        "tokenizer": None,
        "safety_checker": NoGuardrail(),
    }
    return assemble(getattr(diffusers, pipeline), **parts | others)


def _first_generation() -> Any:
    vae = AutoencoderKLCosmos(
        latent_channels=16,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=2,
        patch_size=4,
        scaling_factor=1.0,
        spatial_compression_ratio=4,
        temporal_compression_ratio=4,
    )
    return cosmos("CosmosTextToWorldPipeline", vae=enliven(vae, seed=1), scheduler=_edm())


def _edm() -> EDMEulerScheduler:
    return EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", final_sigmas_type="sigma_min"
    )


def _guided(**others: Any) -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(1, 12, TEXT),
        "negative_prompt_embeds": embeddings(1, 12, TEXT, seed=2),
        "guidance_scale": 4.0,
        "height": SIZE,
        "width": SIZE,
    } | others


SPECIMENS = (
    Specimen("Cosmos2TextToImagePipeline", lambda: cosmos("Cosmos2TextToImagePipeline"), _guided, "sequential"),
    Specimen(
        "Cosmos2VideoToWorldPipeline",
        lambda: cosmos("Cosmos2VideoToWorldPipeline", 17),
        lambda: _guided(image=start_image(), num_frames=5),
        "sequential",
        "frames",
    ),
    Specimen(
        "CosmosTextToWorldPipeline",
        _first_generation,
        lambda: _guided(num_frames=5),
        "sequential",
        "frames",
    ),
    Specimen(
        "Cosmos2_5_PredictBasePipeline",
        lambda: cosmos("Cosmos2_5_PredictBasePipeline", 17, scheduler=flow_unipc()),
        lambda: _guided(video=[start_image()] * 5, num_frames=9),
        "sequential",
        "frames",
    ),
)
