"""Train the denoisers and text encoders of tiny-sdxl and tiny-sd3 on latents that were encoded beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.normalization import AdaLayerNormZero

from hybridiff.models.loading import load_pipeline as load_embedded

from .losses import LOSSES, RepeatedTokenProcessor
from .pipelines import build_pipeline
from .scenes import Scenes
from .training import Average, Checkpoint, Clock, Progress, rate, set_rate
from .vae import load_vae


def denoiser(pipeline: Any) -> torch.nn.Module:
    """The U-Net or the transformer of a pipeline."""
    found: torch.nn.Module = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    return found


def prepare(pipeline: Any) -> None:
    """Start from blocks that do nothing, and from word embeddings of unit size: both speed the first minutes."""
    for name, module in denoiser(pipeline).named_modules():
        if isinstance(module, AdaLayerNormZero):
            torch.nn.init.zeros_(module.linear.weight)
        if name.endswith(("conv2", "conv_out")) or name.split(".")[-1] == "proj_out":
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        embeddings = getattr(encoder, "text_model", encoder).embeddings
        torch.nn.init.normal_(embeddings.token_embedding.weight, std=0.7)
        torch.nn.init.normal_(embeddings.position_embedding.weight, std=0.3)


def set_training_attention(pipeline: Any) -> None:
    """Attention as plain products: on a CPU the fused one's backward pass halves the samples a second."""
    for encoder in (pipeline.text_encoder, pipeline.text_encoder_2):
        encoder.set_attn_implementation("eager")
    unet = hasattr(pipeline, "unet")
    denoiser(pipeline).set_attn_processor(AttnProcessor() if unet else RepeatedTokenProcessor())


def trained_parts(pipeline: Any) -> torch.nn.ModuleDict:
    """Everything that is trained here: the denoiser and both text encoders."""
    return torch.nn.ModuleDict(
        {"denoiser": denoiser(pipeline), "first": pipeline.text_encoder, "second": pipeline.text_encoder_2}
    )


def load_pipeline(cache: Path, name: str) -> Any:
    """The pipeline with the averaged weights of the cache; untrained where there are none."""
    pipeline = build_pipeline(name, load_vae(cache), cache / "scratch" / name)
    saved = cache / f"{name}.pt"
    if saved.exists():
        average = torch.load(saved, weights_only=False)["average"]
        for parameter, value in zip(trained_parts(pipeline).parameters(), average, strict=True):
            parameter.data.copy_(value)
    return pipeline


def take_package_weights(pipeline: Any, name: str) -> None:
    """Go on from the committed weights (half precision, no optimizer state)."""
    trained_parts(pipeline).load_state_dict(trained_parts(load_embedded(name)).state_dict())


class DenoiserTraining:
    """One model in training; continues from its checkpoint where there is one.

    Args:
        name: Of the model.
        pipeline: As training starts from it; trained in place.
        checkpoint: Where its state is saved.
        minutes: Planned for all runs together.
        peak: Largest learning rate.
    """

    def __init__(self, name: str, pipeline: Any, checkpoint: Checkpoint, minutes: float, peak: float) -> None:
        self.name, self.pipeline, self.peak = name, pipeline, peak
        self.parts = trained_parts(pipeline).train()
        self.optimizer = torch.optim.AdamW(
            self.parts.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.average, self.clock, self.samples = Average(self.parts.parameters(), 0.9985), Clock(minutes), 0
        self.losses: list[tuple[int, float, float]] = []
        self._recent: list[float] = []
        state = checkpoint.read()
        if state is not None:
            self._resume(state, minutes)

    def _resume(self, state: dict[str, Any], minutes: float) -> None:
        self.parts.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group.update(fused=True, foreach=False)
        self.average.values, self.average.step = state["average"], state["step"]
        self.clock, self.losses, self.samples = Clock(minutes, state["spent"]), state["losses"], state["samples"]
        torch.set_rng_state(state["random"])

    def learn(self, latents: torch.Tensor, tokens: torch.Tensor, empty: torch.Tensor) -> str:
        """One step of the optimizer; returns a line about it."""
        set_rate(self.optimizer, rate(self.clock.fraction, self.peak))
        with torch.autocast("cpu", torch.bfloat16):
            loss = LOSSES[self.name](self.pipeline, latents, tokens, empty)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parts.parameters(), 1.0)
        self.optimizer.step()
        self.average.update()
        self.samples += len(latents)
        self.clock.tick()
        return self._line(loss.item())

    def _line(self, loss: float) -> str:
        self._recent.append(loss)
        step, mean = self.average.step, float(np.mean(self._recent))
        if step % 100 == 0:
            self.losses.append((step, self.clock.spent, mean))
            self._recent.clear()
        speed = self.samples / self.clock.spent
        return f"step {step} loss {mean:.4f} rate {rate(self.clock.fraction, self.peak):.1e} {speed:.0f}/s"

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.parts.state_dict(),
            "average": self.average.values,
            "optimizer": self.optimizer.state_dict(),
            "step": self.average.step,
            "samples": self.samples,
            "spent": self.clock.spent,
            "losses": self.losses,
            "random": torch.get_rng_state(),
        }


def train(
    cache: Path, name: str, minutes: float, batch: int, peak: float, seed: int, from_scratch: bool = False
) -> None:
    """Train until `minutes` of training time have been spent in all runs together.

    Resumes from the cache; where it holds no checkpoint, from the package's weights unless `from_scratch`.
    """
    torch.manual_seed(seed)
    pipeline = build_pipeline(name, load_vae(cache), cache / "scratch" / name, seed)
    prepare(pipeline)
    checkpoint = Checkpoint(cache / f"{name}.pt", seconds=120)
    if not (from_scratch or checkpoint.path.exists()):
        take_package_weights(pipeline, name)
    set_training_attention(pipeline)
    scenes = Scenes(cache, pipeline)
    training = DenoiserTraining(name, pipeline, checkpoint, minutes, peak)
    progress = Progress(training.clock, name)
    while training.clock.fraction < 1:
        progress.show(training.learn(*scenes.sample(batch), scenes.empty))
        if checkpoint.is_due(training.clock):
            checkpoint.save(training.state() | {"scenes": len(scenes.captions)})
