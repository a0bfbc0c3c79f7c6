"""A specimen of the zoo, and how it is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Specimen:
    """A tiny pipeline with random weights, and a guided call of it.

    Attributes:
        name: Class of the pipeline, with what is special about it behind a colon: "StableDiffusionXLPipeline",
            "WanPipeline:two-transformers".
        build: Makes it; the same weights every time.
        call: Arguments of a guided call (without `generator`, `output_type` and `num_inference_steps`).
        layout: How it does guidance: "batched", "positive-first", "sequential", "branches" (three or more), "guider",
            "single" (no guidance).
        output: Name of the output field with the result ("images", "frames", "audios" ...).
        steps: Least number of steps that is sensible.
        latent: Whether `output_type="latent"` is supported (then the matrix compares latents).
    """

    name: str
    build: Callable[[], Any]
    call: Callable[[], dict[str, Any]]
    layout: str = "batched"
    output: str = "images"
    steps: int = 4
    latent: bool = True


def run(specimen: Specimen, pipe: Any, seed: int = 0, steps: int | None = None, **changes: Any) -> torch.Tensor:
    """What the pipeline generates, as one tensor; `changes` replaces or adds arguments of the call.

    The global generator is seeded too: some pipelines draw from it when they encode images.
    """
    arguments = {
        "generator": torch.Generator().manual_seed(seed),
        "num_inference_steps": steps or specimen.steps,
        "output_type": "latent" if specimen.latent else "np",
    }
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return as_tensor(getattr(pipe(**arguments | specimen.call() | changes), specimen.output))


def as_tensor(result: Any) -> torch.Tensor:
    """A result of a pipeline as a tensor; a list of results becomes a batch."""
    if isinstance(result, (list, tuple)):
        return torch.stack([as_tensor(item) for item in result])
    return torch.as_tensor(result)
