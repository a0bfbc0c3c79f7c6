"""The networks of the bench models, and calls of them by hand."""

from __future__ import annotations

from typing import Any

import torch

from hybridiff.models.bench import BENCH, open_bench

NETWORKS = BENCH[:2]
"""Those that are narrow enough for a core."""


def make_network(name: str, pixels: int) -> tuple[torch.nn.Module, dict[str, Any]]:
    """A network, and the arguments of a call for one picture of so many pixels a side."""
    folder = open_bench(name)
    network = folder.read_networks(torch.float32)[folder.denoiser]
    torch.manual_seed(0)
    sample, timestep = torch.randn(1, network.config.in_channels, pixels // 8, pixels // 8), torch.tensor([500.0])
    if folder.denoiser == "unet":
        words = torch.randn(1, 77, network.config.cross_attention_dim)
        added = {"text_embeds": torch.randn(1, 64), "time_ids": torch.full((1, 6), float(pixels))}
        call = {"sample": sample, "encoder_hidden_states": words, "added_cond_kwargs": added}
    else:
        words = torch.randn(1, 333, network.config.joint_attention_dim)
        pooled = torch.randn(1, network.config.pooled_projection_dim)
        call = {"hidden_states": sample, "encoder_hidden_states": words, "pooled_projections": pooled}
    return network, call | {"timestep": timestep}
