"""Train the VAE that both tiny models share, and measure it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from hybridiff.models import tiny
from hybridiff.models.tiny.scenes import sample_scenes

from .drawing import render
from .pipelines import build_vae
from .training import Average, Checkpoint, Clock, Progress, rate, set_rate

TWO_OBJECT_SHARE = 0.4
KL_WEIGHT = 1e-4
CROP_SHARE = 0.6  # of the time: crops first, four times as many a second


def scene_batch(count: int, rng: np.random.Generator, split: str = "train") -> torch.Tensor:
    """Images of random scenes of a split, (count, 3, 128, 128) in -1..1."""
    images = []
    for _ in range(count):
        objects = 2 if rng.random() < TWO_OBJECT_SHARE else 1
        images.append(render(next(sample_scenes(split, objects, rng)), rng))
    return to_tensor(np.stack(images))


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) in 0..1 -> (N, 3, H, W) in -1..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() * 2 - 1


class VaeTraining:
    """The VAE in training; continues from its checkpoint where there is one."""

    def __init__(self, checkpoint: Checkpoint, minutes: float, peak: float, seed: int) -> None:
        self.vae, self.peak = build_vae(), peak
        self.optimizer = torch.optim.AdamW(self.vae.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-4)
        self.average, self.clock = Average(self.vae.parameters(), 0.995), Clock(minutes)
        self.rng = np.random.default_rng(seed)
        self._names = [name for name, _ in self.vae.named_parameters()]
        state = checkpoint.read()
        if state is not None:
            self.vae.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.values, self.average.step = [state["average"][name] for name in self._names], state["step"]
            self.rng, self.clock = state["rng"], Clock(minutes, state["spent"])

    def learn(self, batch: int) -> str:
        """One step of the optimizer; returns a line about it."""
        set_rate(self.optimizer, rate(self.clock.fraction, self.peak))
        text = _vae_step(self.vae, self.optimizer, _vae_batch(batch, self.rng, crops=self.clock.fraction < CROP_SHARE))
        self.average.update()
        self.clock.tick()
        return f"step {self.average.step} {text}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.vae.state_dict(),
            "rng": self.rng,
            "step": self.average.step,
            "average": dict(zip(self._names, self.average.values, strict=True)),
            "optimizer": self.optimizer.state_dict(),
            "spent": self.clock.spent,
        }


def train_vae(cache: Path, minutes: float, batch: int, peak: float, seed: int) -> None:
    """Train until `minutes` of training time have been spent in all runs together; resumes from the cache."""
    torch.manual_seed(seed)
    checkpoint = Checkpoint(cache / "vae.pt", seconds=60)
    training = VaeTraining(checkpoint, minutes, peak, seed)
    progress = Progress(training.clock, "vae")
    while training.clock.fraction < 1:
        progress.show(training.learn(batch))
        if checkpoint.is_due(training.clock):
            checkpoint.save(training.state() | {"batch": batch})


def _vae_batch(batch: int, rng: np.random.Generator, crops: bool) -> torch.Tensor:
    """Whole images, or twice as many crops of 64 pixels, the image's middle in one of their quarters."""
    if not crops:
        return scene_batch(batch, rng)
    images = scene_batch(2 * batch, rng)
    corners = rng.integers(8, 57, (2 * batch, 2))
    return torch.stack([image[:, y : y + 64, x : x + 64] for image, (y, x) in zip(images, corners, strict=True)])


def _vae_step(vae: AutoencoderKL, optimizer: torch.optim.Optimizer, images: torch.Tensor) -> str:
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + torch.exp(0.5 * posterior.logvar) * torch.randn_like(posterior.mean)
        decoded = vae.decode(latents).sample
    decoded = decoded.float()
    flat, square = F.l1_loss(decoded, images), F.mse_loss(decoded, images)
    edge = sum((torch.diff(decoded, dim=dim) - torch.diff(images, dim=dim)).abs().mean() for dim in (2, 3))
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
    images = scene_batch(count, np.random.default_rng(12345), "evaluation")
    means = torch.cat([vae.encode(part).latent_dist.mean for part in images.split(16)])
    decoded = torch.cat([vae.decode(part).sample for part in means.split(16)]).clamp(-1, 1)
    each = (decoded - images).square().mean((1, 2, 3))
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
