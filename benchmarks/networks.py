"""Networks with the block structure of SDXL and of SD3-medium, narrow enough for a core, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NETWORKS: dict[str, Callable[[int], tuple[torch.nn.Module, dict[str, Any]]]] = {}
"""Each makes a network, and the arguments of a call for one picture of so many pixels a side."""


def _network(
    make: Callable[[int], tuple[torch.nn.Module, dict[str, Any]]],
) -> Callable[[int], tuple[torch.nn.Module, dict[str, Any]]]:
    NETWORKS[make.__name__.replace("_", "-")] = make
    return make


@_network
def bench_sdxl(pixels: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """SDXL's U-Net, a tenth as wide: three levels, 2 and 10 transformer layers."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    network = UNet2DConditionModel(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 128),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(1, 2, 4),
        norm_num_groups=16,
        cross_attention_dim=128,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=64 + 6 * 16,
    ).eval()
    added = {"text_embeds": torch.randn(1, 64), "time_ids": torch.full((1, 6), float(pixels))}
    call = {
        "sample": torch.randn(1, 4, pixels // 8, pixels // 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 77, 128),
        "added_cond_kwargs": added,
    }
    return network, call


@_network
def bench_sd3(pixels: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """The transformer of SD3-medium, a twelfth as wide: 24 blocks, 77 + 77 text tokens."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=128,
        num_layers=24,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=256,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=max(192, pixels // 16),
    ).eval()
    call = {
        "hidden_states": torch.randn(1, 16, pixels // 8, pixels // 8),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 154, 256),
        "pooled_projections": torch.randn(1, 128),
    }
    return network, call
