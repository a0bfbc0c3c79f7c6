"""Train the VAE that both tiny models share, and encode scenes with it once for all."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from hybridiff.models import tiny
from hybridiff.models.tiny.drawing import render
from hybridiff.models.tiny.scenes import sample_scenes
from tiny_models import build_vae
from tiny_training import Average, Clock, Progress, rate, save

TWO_OBJECT_SHARE = 0.4
KL_WEIGHT = 1e-4
CROP_SHARE = 0.6  # of the time: crops first, four times as many a second


def scene_batch(count: int, rng: np.random.Generator, split: str = "train") -> torch.Tensor:
    """Pictures of random scenes of a split, (count, 3, 128, 128) in -1..1."""
    pictures = []
    for _ in range(count):
        objects = 2 if rng.random() < TWO_OBJECT_SHARE else 1
        pictures.append(render(next(sample_scenes(split, objects, rng)), rng))
    return to_tensor(np.stack(pictures))


def to_tensor(pictures: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) in 0..1 -> (N, 3, H, W) in -1..1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous() * 2 - 1


def train_vae(cache: Path, minutes: float, batch: int, peak: float, seed: int) -> None:
    """Train until `minutes` of training time have been spent in all runs together; resumes from the cache."""
    torch.manual_seed(seed)
    vae, saved = build_vae(), cache / "vae.pt"
    names = [name for name, _ in vae.named_parameters()]
    optimizer = torch.optim.AdamW(vae.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
    average, clock, rng, step = Average(vae.parameters(), 0.995), Clock(minutes), np.random.default_rng(seed), 0
    if saved.exists():
        state = torch.load(saved, weights_only=False)
        vae.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.values, average.step = [state["average"][name] for name in names], state["step"]
        rng, step, clock = state["rng"], state["step"], Clock(minutes, state["spent"])
    progress, kept_at = Progress(clock, "vae"), time.monotonic()
    while clock.fraction < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(clock.fraction, peak)
        text = _vae_step(vae, optimizer, _vae_batch(batch, rng, crops=clock.fraction < CROP_SHARE))
        average.update()
        step += 1
        clock.tick()
        progress.show(f"step {step} {text}")
        if time.monotonic() - kept_at > 60 or clock.fraction >= 1:
            kept_at = time.monotonic()
            save(
                {
                    "model": vae.state_dict(),
                    "rng": rng,
                    "step": step,
                    "average": dict(zip(names, average.values, strict=True)),
                    "optimizer": optimizer.state_dict(),
                    "spent": clock.spent,
                    "batch": batch,
                },
                saved,
            )


def _vae_batch(batch: int, rng: np.random.Generator, crops: bool) -> torch.Tensor:
    """Whole pictures, or twice as many crops of 64 pixels, the picture's middle in one of their quarters."""
    if not crops:
        return scene_batch(batch, rng)
    pictures = scene_batch(2 * batch, rng)
    corners = rng.integers(8, 57, (2 * batch, 2))
    return torch.stack([picture[:, y : y + 64, x : x + 64] for picture, (y, x) in zip(pictures, corners, strict=True)])


def _vae_step(vae: AutoencoderKL, optimizer: torch.optim.Optimizer, pictures: torch.Tensor) -> str:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(pictures).latent_dist
        latents = posterior.mean + torch.exp(0.5 * posterior.logvar) * torch.randn_like(posterior.mean)
        decoded = vae.decode(latents).sample
    decoded = decoded.float()
    flat, square = F.l1_loss(decoded, pictures), F.mse_loss(decoded, pictures)
    edge = sum((torch.diff(decoded, dim=dim) - torch.diff(pictures, dim=dim)).abs().mean() for dim in (2, 3))
    divergence = 0.5 * (posterior.mean.float() ** 2 + posterior.logvar.float().exp() - 1 - posterior.logvar.float())
    loss = flat + 2 * square + edge + KL_WEIGHT * divergence.mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return f"l1 {flat.item():.4f} psnr {10 * math.log10(4 / square.item()):.2f} kl {divergence.mean().item():.2f}"


def load_vae(cache: Path) -> AutoencoderKL:
    """The averaged VAE of the cache, else the package's, with the factors that bring its latents to unit variance."""
    saved = cache / "vae.pt"
    if not saved.exists():
        return AutoencoderKL.from_pretrained(tiny.folder("tiny-sdxl") / "vae").eval()
    vae = build_vae().eval()
    state: dict[str, Any] = torch.load(saved, weights_only=False)
    # half precision here, so that latents are made by the very weights that are exported
    vae.load_state_dict({name: value.half().float() for name, value in state["average"].items()})
    vae.register_to_config(**state.get("factors", {}))
    return vae


@torch.no_grad()
def measure_vae(cache: Path, count: int = 64) -> dict[str, float]:
    """PSNR in dB of held-out scenes through encoder and decoder; keeps the latents' scale in the checkpoint."""
    vae = load_vae(cache)
    pictures = scene_batch(count, np.random.default_rng(12345), "evaluation")
    means = torch.cat([vae.encode(part).latent_dist.mean for part in pictures.split(16)])
    decoded = torch.cat([vae.decode(part).sample for part in means.split(16)]).clamp(-1, 1)
    each = (decoded - pictures).square().mean((1, 2, 3))
    factors = {"scaling_factor": round(1 / float(means.std()), 4), "shift_factor": 0.0}
    state = torch.load(cache / "vae.pt", weights_only=False)
    torch.save({**state, "factors": factors}, cache / "vae.pt")
    return {
        "psnr_mean": float((10 * torch.log10(4 / each)).mean()),
        "psnr_worst": float((10 * torch.log10(4 / each)).min()),
        "latent_mean": float(means.mean()),
        **factors,
        **{f"latent_{index}_std": float(means[:, index].std()) for index in range(4)},
        **{f"latent_{index}_mean": float(means[:, index].mean()) for index in range(4)},
    }
