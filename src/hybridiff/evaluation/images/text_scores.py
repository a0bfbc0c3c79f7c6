"""How well a picture fits its text, by networks from this disk."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image

CLIP = "openai/clip-vit-large-patch14"
"""The network that CLIP scores are usually told of."""
REWARD_FILES = ("ImageReward.pt", "med_config.json")
"""What the folder of an ImageReward holds."""


class ClipScore(torch.nn.Module):
    """100 times the cosine of what CLIP makes of picture and text, at least 0 (Hessel et al. 2021).

    Args:
        model: A folder with a CLIP model and its processor, or a hub id of which the files are on this disk.

    Raises:
        OSError, ValueError: there is none.
    """

    def __init__(self, model: str) -> None:
        from transformers import AutoProcessor, CLIPModel

        super().__init__()
        self.network = CLIPModel.from_pretrained(model, local_files_only=True).eval()
        self._processor = AutoProcessor.from_pretrained(model, local_files_only=True)
        self._longest = self.network.config.text_config.max_position_embeddings

    @torch.no_grad()
    def forward(self, image: Image.Image, text: str) -> float:
        """The score, from 0 to 100."""
        options = {"return_tensors": "pt", "padding": True, "truncation": True, "max_length": self._longest}
        inputs = self._processor(text=[text], images=[image], **options).to(self.network.device)
        found = self.network(**inputs)
        return max(0.0, 100.0 * float((found.image_embeds * found.text_embeds).sum()))  # both of length 1


class ImageReward:
    """What people would prefer, about -2 to 2 (Xu et al. 2023).

    Args:
        folder: It holds `REWARD_FILES`.
        device: Where the network runs.

    Raises:
        ModuleNotFoundError: the package image-reward is not installed.
        OSError, RuntimeError: the folder does not hold it.
    """

    def __init__(self, folder: Path, device: str) -> None:
        package = import_module("ImageReward")
        weights, config = (str(folder / name) for name in REWARD_FILES)
        self._network: Any = package.load(weights, device=device, med_config=config)

    def __call__(self, image: Image.Image, text: str) -> float:
        """The reward."""
        with torch.no_grad():
            return float(self._network.score(text, image))
