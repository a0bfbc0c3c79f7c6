"""Small networks in the places of those that images are measured by, as files like theirs."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

from hybridiff.evaluation.perceptual import _alexnet

from .pipelines import TEXT_TOKENS, clip_tokenizer

FEATURES = 6


class SmallInception(torch.nn.Module):
    """Means of channels, and of their squares; like the network it stands for it makes logits unless told otherwise."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        scaled = images / 255.0
        features = torch.cat([scaled.mean((2, 3)), scaled.square().mean((2, 3))], dim=1)
        return features if return_features else features[:, :1]


def save_inception(path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(SmallInception()).save(str(path))
    return path


def save_alexnet(path: Path) -> Path:
    """Random weights, under the names of torchvision, its classifier's among them."""
    torch.manual_seed(0)
    state = {f"features.{name}": value for name, value in _alexnet().state_dict().items()}
    torch.save(state | {"classifier.1.bias": torch.zeros(3)}, path)
    return path


def save_clip(folder: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    network = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = network | ends | {"vocab_size": len(tokenizer), "max_position_embeddings": TEXT_TOKENS}
    vision = network | {"image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return folder


def save_image_reward(folder: Path) -> Path:
    """A folder like that of an ImageReward; the package that reads it is not installed with the tests."""
    folder.mkdir()
    (folder / "ImageReward.pt").write_bytes(b"weights")
    (folder / "med_config.json").write_text(json.dumps({}))
    return folder
