"""LoRAs with random weights for pipelines of the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict


def save_lora(pipe: Any, folder: Path, seed: int, strength: float = 1.0) -> str:
    """Write a LoRA that fits a pipeline's denoiser, and leave the pipeline as it was; the folder that holds it."""
    part = "unet" if hasattr(pipe, "unet") else "transformer"
    network = getattr(pipe, part)
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_k", "to_v"]))
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: strength * torch.randn(weight.shape, generator=generator)
        for name, weight in get_peft_model_state_dict(network).items()
    }
    type(pipe).save_lora_weights(folder, **{f"{part}_lora_layers": weights})
    pipe.unload_lora_weights()
    return str(folder)
