"""Training scenes: rendered and encoded once, then read in batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hybridiff.models.tiny.scenes import caption, drop_attributes, sample_scenes

from .drawing import render
from .training import Clock, Progress, save
from .vae import TWO_OBJECT_SHARE, load_vae, to_tensor


@torch.no_grad()
def encode_scenes(cache: Path, count: int, seed: int) -> None:
    """Render training scenes, keep their captions and the moments of their latents; one file per seed."""
    rng, vae = np.random.default_rng([7, seed]), load_vae(cache)
    captions: list[str] = []
    moments: list[torch.Tensor] = []
    clock = Clock(count / 3600)  # only for its progress: about 60 scenes a second
    progress = Progress(clock, f"scenes {seed}")
    while len(captions) < count:
        scenes = [next(sample_scenes("train", 2 if rng.random() < TWO_OBJECT_SHARE else 1, rng)) for _ in range(32)]
        images = to_tensor(np.stack([render(scene, rng) for scene in scenes]))
        with torch.autocast("cpu", torch.bfloat16):
            moments.append(vae.encode(images).latent_dist.parameters.half())
        captions += [caption(drop_attributes(scene, rng, background_share=0.04)) for scene in scenes]
        clock.tick()
        progress.show(f"{len(captions)} of {count}")
    save({"captions": captions, "moments": torch.cat(moments)}, cache / f"scenes-{seed}.pt")


class Scenes:
    """Every encoded scene of the cache, in random batches of latents and token ids.

    Raises:
        FileNotFoundError: the cache has none.
    """

    def __init__(self, cache: Path, pipeline: Any) -> None:
        parts = [torch.load(path) for path in sorted(cache.glob("scenes-*.pt"))]
        if not parts:
            raise FileNotFoundError(f"no scenes in {cache}; make them with: python -m tools.tiny_models scenes")
        self.captions = [text for part in parts for text in part["captions"]]
        mean, logvar = torch.cat([part["moments"] for part in parts]).chunk(2, 1)
        self.mean, self.deviation = mean, torch.exp(0.5 * logvar.float()).half()
        self.scale = float(pipeline.vae.config.scaling_factor)
        self.tokens = pipeline.tokenizer(
            self.captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        self.empty = pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids

    def sample(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of unit variance (B, 4, 16, 16) and token ids (B, 20)."""
        chosen = torch.randint(len(self.mean), (batch,))
        mean, deviation = self.mean[chosen].float(), self.deviation[chosen].float()
        return (mean + deviation * torch.randn_like(mean)) * self.scale, self.tokens[chosen]
