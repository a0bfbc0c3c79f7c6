"""Any other denoiser: its calls can be shared and cached, but it cannot be split."""

from __future__ import annotations

import torch

from ...errors import UsageError
from ..layers import Layer
from ..split import SplitPoint
from .base import DenoiserAdapter


class OtherAdapter(DenoiserAdapter):
    """A network of which nothing is known but that it predicts something from its first argument."""

    class_name = ""
    attribute = ""
    sample = ""

    def layers(self, network: torch.nn.Module) -> list[Layer]:
        raise UsageError(
            f"the layers of {type(network).__name__} are not known, so it cannot be split; use strategy 'hybrid' with "
            "cached steps, or 'cfg'"
        )

    def split_points(self, network: torch.nn.Module) -> list[SplitPoint]:
        return []
