"""Cosmos-Predict2: a conditional call, its prediction made a sample at once, then an unconditional call."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, CosmosTransformer3DModel, FlowMatchEulerDiscreteScheduler, ModelMixin

from support.pipelines import SIZE, start_image
from zoo.parts import assemble, embeddings, enliven, wan_vae
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


def cosmos2(pipeline: str, in_channels: int) -> Any:
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
    return assemble(
        getattr(diffusers, pipeline),
        transformer=enliven(transformer),
        vae=wan_vae(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        text_encoder=None,
        tokenizer=None,
        safety_checker=NoGuardrail(),
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
    Specimen("Cosmos2TextToImagePipeline", lambda: cosmos2("Cosmos2TextToImagePipeline", 16), _guided, "sequential"),
    Specimen(
        "Cosmos2VideoToWorldPipeline",
        lambda: cosmos2("Cosmos2VideoToWorldPipeline", 17),
        lambda: _guided(image=start_image(), num_frames=5),
        "sequential",
        "frames",
    ),
)
