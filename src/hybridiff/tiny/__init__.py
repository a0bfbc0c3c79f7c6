"""Two small trained diffusion models, and the captioned scenes that they draw."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAMES = ("tiny-sdxl", "tiny-sd3")
GUIDANCE = {"tiny-sdxl": 2.0, "tiny-sd3": 5.0}  # the scales at which they draw best; more distorts colours


def folder(name: str) -> Path:
    """The diffusers folder of the embedded model `name`."""
    if name not in NAMES:
        raise ValueError(f"unknown tiny model {name!r}; the embedded models are {', '.join(NAMES)}")
    return Path(__file__).parent / name


def load(name: str, **arguments: Any) -> Any:
    """The stock diffusers pipeline around the embedded model `name`; `arguments` go to `from_pretrained`."""
    from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline

    if name == "tiny-sdxl":
        return StableDiffusionXLPipeline.from_pretrained(folder(name), **arguments)
    # diffusers wants to be told that the T5 encoder is absent, as for any SD3 folder without one
    without_t5: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    return StableDiffusion3Pipeline.from_pretrained(folder(name), **{**without_t5, **arguments})
