"""Fréchet Inception distance (FID, Heusel et al. 2017) of two sets of pictures, by a network from this disk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

WEIGHTS = "inception-2015-12-05.pt"
"""The TorchScript file of the Inception network that FID was defined by."""
SIDE = 299
"""Pixels of the pictures that it sees."""


class InceptionFeatures(torch.nn.Module):
    """What a network makes of a picture.

    Args:
        path: A TorchScript file that takes (N, 3, 299, 299) with values from 0 to 255 and returns (N, D). If it has an
            argument `return_features`, that is set.

    Raises:
        OSError, RuntimeError, ValueError: it is no such file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it is the format in which the network is published
            load: Any = torch.jit.load
            self.network: Any = load(str(path), map_location="cpu").eval()
        names = [argument.name for argument in self.network.forward.schema.arguments]
        self._options = {"return_features": True} if "return_features" in names else {}
        self.size = self(Image.new("RGB", (SIDE, SIDE))).numel()

    @torch.no_grad()
    def forward(self, picture: Image.Image) -> torch.Tensor:
        """The features, (D,) on the CPU."""
        device = next(iter([*self.network.parameters(), *self.network.buffers()]), torch.empty(0)).device
        features: torch.Tensor = self.network(_resized(picture)[None].to(device), **self._options)
        return features.flatten().double().cpu()


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """The distance of two sets of pictures, each seen as a normal distribution of features.

    Args:
        features: (N, D), with two pictures or more.
        reference: (M, D), likewise.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric: Any = FrechetInceptionDistance(_AsTheyAre(features.shape[1])).set_dtype(torch.float64)
    metric.update(features, real=False)
    metric.update(reference, real=True)
    return max(0.0, float(metric.compute()))  # rounding takes that of equal sets below 0


class _AsTheyAre(torch.nn.Identity):
    """Takes the place of a network where there are features already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def _resized(picture: Image.Image) -> torch.Tensor:
    """(3, 299, 299) from 0 to 255, bicubic and antialiased without rounding ("clean" FID, Parmar et al. 2022)."""
    channels = [Image.fromarray(np.asarray(channel, np.float32)) for channel in picture.split()]
    resized = [np.asarray(one.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).clip(0, 255) for one in channels]
    return torch.from_numpy(np.stack(resized))
