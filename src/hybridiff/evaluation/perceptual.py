"""LPIPS, the learned distance of two pictures (Zhang et al. 2018), from local weights of AlexNet."""

from __future__ import annotations

import functools
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..utils.files import downloaded_by_torch

WEIGHTS = "alexnet-owt-7be5be79.pth"
"""The file of AlexNet's weights that LPIPS was fitted to, as torchvision has them."""

_RELUS = (1, 4, 7, 9, 11)
"""Layers whose output is compared."""
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of values from -1 to 1, by channel."""


class Lpips(nn.Module):
    """Distance of two pictures: 0 where they are identical, about 1 where nothing is alike.

    Torchmetrics brings the weights of the distance, but those of AlexNet only by way of torchvision.

    Args:
        weights: A state dictionary of torchvision's AlexNet; only its convolutions are used.

    Raises:
        ModuleNotFoundError: torchmetrics is not installed.
        Exception: the file does not hold these weights; torch raises what it likes.
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.features = _alexnet()
        state = torch.load(weights, map_location="cpu", weights_only=True)
        self.load_state_dict({name: value for name, value in state.items() if name.startswith("features.")})
        heads = torch.load(
            str(files("torchmetrics") / "functional/image/lpips_models/alex.pth"), map_location="cpu", weights_only=True
        )
        for number in range(len(_RELUS)):
            self.register_buffer(f"head{number}", heads[f"lin{number}.model.1.weight"])  # (1, C, 1, 1)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, image: Any, other: Any) -> float:
        """The distance.

        Args:
            image: (H, W, 3) with values from 0 to 1.
            other: Of the same size.
        """
        pair = torch.stack([torch.as_tensor(pixels).float().permute(2, 0, 1) for pixels in (image, other)])
        hidden = (2.0 * pair.to(self.shift.device) - 1.0 - self.shift) / self.scale  # (2, 3, H, W)
        distance = 0.0
        for place, layer in enumerate(self.features):
            hidden = layer(hidden)
            if place in _RELUS:
                ours, theirs = hidden / (hidden.square().sum(1, keepdim=True) + 1e-8).sqrt()
                head = getattr(self, f"head{_RELUS.index(place)}")
                distance += functional.conv2d((ours - theirs).square()[None], head).mean().item()
        return distance


@functools.cache
def lpips_at_hand() -> Lpips | None:
    """The distance by what is on this machine; None where torchmetrics or the weights are missing."""
    weights = downloaded_by_torch(WEIGHTS)
    return Lpips(weights) if weights.is_file() and find_spec("torchmetrics") is not None else None


def _alexnet() -> nn.Sequential:
    """The convolutions of AlexNet, numbered as in torchvision."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    )
