"""Short films as input, and autoencoders of films."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLCogVideoX
from PIL import Image

from support.pipelines import start_image


def film(frames: int = 4) -> list[Image.Image]:
    """The image to start from, turning."""
    return [start_image().rotate(10 * index) for index in range(frames)]


def causal_vae(**settings: Any) -> Any:
    """The autoencoder of CogVideoX, with two levels in space and two in time."""
    torch.manual_seed(1)
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
        **settings,
    ).eval()
