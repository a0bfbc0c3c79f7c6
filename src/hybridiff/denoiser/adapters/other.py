"""Any other denoiser: its calls can be shared and cached, but it cannot be split."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from ...config import PublishedSettings
from ...errors import UsageError
from ..layers import Layer
from ..split import SplitPoint
from .base import DenoiserAdapter


class OtherAdapter(DenoiserAdapter):
    """A network of which nothing is known but that it predicts something from its first argument."""

    class_name = ""
    attribute = ""
    sample = ""
    keeps_residual = True
    reuse_share = 1 / 6
    cuda_dtype = "bfloat16"
    published = PublishedSettings(slope_window=15, slope_threshold=5e-4, parallel_steps=5, tau_cap=40)

    def output(self, sample: Any) -> Any:
        return Transformer2DModelOutput(sample=sample)

    def layers(self, network: torch.nn.Module) -> list[Layer]:
        raise UsageError(
            f"the layers of {type(network).__name__} are not known, so it cannot be split; use strategy 'hybrid' with "
            "cached steps, or 'cfg'"
        )

    def split_points(self, network: torch.nn.Module) -> list[SplitPoint]:
        return []
