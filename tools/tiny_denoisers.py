"""Train the denoisers and text encoders of tiny-sdxl and tiny-sd3 on latents that were encoded beforehand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.normalization import AdaLayerNormZero

from hybridiff.models import loading as models
from hybridiff.models.tiny.drawing import render
from hybridiff.models.tiny.scenes import caption, drop_attributes, sample_scenes
from tiny_models import TIME_IDS, build_pipeline
from tiny_training import Average, Clock, Progress, rate, save
from tiny_vae import TWO_OBJECT_SHARE, load_vae, to_tensor

# ---------------------------------------------------------------- scenes, encoded once


@torch.no_grad()
def encode_scenes(cache: Path, count: int, seed: int) -> None:
    """Render training scenes, keep their captions and the moments of their latents; one file a seed."""
    rng, vae = np.random.default_rng([7, seed]), load_vae(cache)
    captions, moments = [], []
    clock = Clock(count / 3600)  # only for its progress: about 60 scenes a second
    progress = Progress(clock, f"scenes {seed}")
    while len(captions) < count:
        scenes = [next(sample_scenes("train", 2 if rng.random() < TWO_OBJECT_SHARE else 1, rng)) for _ in range(32)]
        pictures = to_tensor(np.stack([render(scene, rng) for scene in scenes]))
        with torch.autocast("cpu", torch.bfloat16):
            moments.append(vae.encode(pictures).latent_dist.parameters.half())
        captions += [caption(drop_attributes(scene, rng, background_share=0.04)) for scene in scenes]
        clock.tick()
        progress.show(f"{len(captions)} of {count}")
    save({"captions": captions, "moments": torch.cat(moments)}, cache / f"scenes-{seed}.pt")


class Scenes:
    """Every encoded scene of the cache; draws batches of latents and token ids."""

    def __init__(self, cache: Path, pipeline: Any) -> None:
        parts = [torch.load(path) for path in sorted(cache.glob("scenes-*.pt"))]
        if not parts:
            raise FileNotFoundError(f"no scenes in {cache}; make them with: train_tiny.py scenes")
        self.captions = [text for part in parts for text in part["captions"]]
        mean, logvar = torch.cat([part["moments"] for part in parts]).chunk(2, 1)
        self.mean, self.deviation = mean, torch.exp(0.5 * logvar.float()).half()
        self.scale = float(pipeline.vae.config.scaling_factor)
        self.tokens = pipeline.tokenizer(
            self.captions, padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        self.empty = pipeline.tokenizer([""], padding="max_length", return_tensors="pt").input_ids

    def draw(self, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents of unit variance (B, 4, 16, 16) and token ids (B, 20)."""
        chosen = torch.randint(len(self.mean), (batch,))
        mean, deviation = self.mean[chosen].float(), self.deviation[chosen].float()
        return (mean + deviation * torch.randn_like(mean)) * self.scale, self.tokens[chosen]


# ---------------------------------------------------------------- tiny-sdxl


def encode_text(pipeline: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Both encoders as the stock pipelines use them: states before the last layer (B, 20, 128), pooled embeddings."""
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    return states, [output.text_embeds for output in outputs if hasattr(output, "text_embeds")]


def sdxl_loss(pipeline: Any, latents: torch.Tensor, tokens: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """v-prediction; the unconditional branch is zeros (as the pipeline's), seldom the encoded empty prompt.

    Half of the timesteps lean towards noise: the layout is open only above t = 800, which a uniform draw seldom visits.
    Some samples overshoot their scene as guided ones do, and the network learns to come back.
    """
    batch = len(latents)
    fate = torch.rand(batch)
    states, pooled = encode_text(pipeline, torch.where((fate > 0.97)[:, None], empty, tokens))
    kept = (fate >= 0.10).float()
    states, text_embeds = states * kept[:, None, None], pooled[-1] * kept[:, None]
    uniform = torch.rand(batch)
    leaning = torch.where(torch.rand(batch) < 0.5, 3 * uniform / (1 + 2 * uniform), uniform)
    steps = (leaning * pipeline.scheduler.config.num_train_timesteps).long()
    signal = pipeline.scheduler.alphas_cumprod[steps].sqrt()[:, None, None, None]
    noise_share = (1 - signal**2).sqrt()
    noise = torch.randn_like(latents)
    noisy = signal * overshot(latents, steps) + noise_share * noise
    added = {"text_embeds": text_embeds, "time_ids": torch.tensor([TIME_IDS], dtype=torch.float32).repeat(batch, 1)}
    found = pipeline.unet(noisy, steps, states, added_cond_kwargs=added, return_dict=False)[0]
    # The v that leads from the noisy sample to the scene; signal * noise - noise_share * latents without overshoot.
    steady = noise_share > 0.02
    target = torch.where(steady, (signal * noisy - latents) / noise_share.clamp_min(0.02), noise)
    return F.mse_loss(found.float(), target)


def overshot(latents: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
    """Scenes with too much contrast for half of a batch, the more the nearer to pure noise.

    A scale of 5 takes the first guided steps far beyond any scene (the branches differ by 5 times the prediction
    there); a network that has only seen scenes carries the wrong colours to the end.
    """
    excess = 4 * torch.exp((steps.float() / 1000 - 1) / 0.17) * torch.rand(len(latents))
    excess = torch.where(torch.rand(len(latents)) < 0.5, excess, 0.0)
    return latents * (1 + excess)[:, None, None, None]


# ---------------------------------------------------------------- tiny-sd3


class RepeatedTokenProcessor:
    """Joint attention in which one key may stand for many: `key_bias` (B, 1, 1, keys) is added to the logits.

    The stock SD3 pipeline appends n zero tokens in place of T5's. They carry no position, so they stay equal in
    all blocks, and n equal keys weigh as much as one key whose logit is raised by log(n).
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        key_bias: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        def heads(states: torch.Tensor, norm: torch.nn.Module | None) -> torch.Tensor:
            states = states.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, N, C) -> (B, H, N, C / H)
            return states if norm is None else norm(states)

        picture, text = hidden_states, encoder_hidden_states
        query = torch.cat([heads(attn.to_q(picture), attn.norm_q), heads(attn.add_q_proj(text), attn.norm_added_q)], 2)
        key = torch.cat([heads(attn.to_k(picture), attn.norm_k), heads(attn.add_k_proj(text), attn.norm_added_k)], 2)
        value = torch.cat([heads(attn.to_v(picture), None), heads(attn.add_v_proj(text), None)], 2)
        # written out: the backward pass of the fused attention takes twice the time of everything else on a CPU
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = (logits if key_bias is None else logits + key_bias).softmax(-1)
        mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        picture, text = mixed[:, : picture.shape[1]], mixed[:, picture.shape[1] :]
        return attn.to_out[0](picture), text if attn.context_pre_only else attn.to_add_out(text)


def with_zero_token(states: torch.Tensor, counts: torch.Tensor, pictures: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Append one zero token that stands for `counts` (B,); returns the text (B, N + 1, C) and the bias of the keys."""
    states = F.pad(states, (0, 0, 0, 1))
    bias = torch.zeros(len(states), 1, 1, pictures + states.shape[1])
    bias[..., -1] = torch.log(counts)[:, None, None]
    return states, bias


def sd3_loss(pipeline: Any, latents: torch.Tensor, tokens: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Rectified flow; half of the noise levels as shift 3 samples them, half logit-normal."""
    batch = len(latents)
    states, pooled = encode_text(pipeline, torch.where((torch.rand(batch) < 0.10)[:, None], empty, tokens))
    counts = torch.where(torch.rand(batch) < 0.5, 256.0, torch.exp(torch.rand(batch) * math.log(256)))
    states, bias = with_zero_token(states, counts, pictures=64)
    uniform = torch.rand(batch)
    shifted = 3 * uniform / (1 + 2 * uniform)
    sigma = torch.where(torch.rand(batch) < 0.5, shifted, torch.sigmoid(torch.randn(batch)))
    noise = torch.randn_like(latents)
    level = sigma[:, None, None, None]
    found = pipeline.transformer(
        (1 - level) * latents + level * noise,
        states,
        torch.cat(pooled, -1),
        sigma * 1000,
        joint_attention_kwargs={"key_bias": bias},
        return_dict=False,
    )[0]
    return F.mse_loss(found.float(), noise - latents)


# ---------------------------------------------------------------- training


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"tiny-sdxl": sdxl_loss, "tiny-sd3": sd3_loss}


def denoiser(pipeline: Any) -> torch.nn.Module:
    """The U-Net or the transformer of a pipeline."""
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def prepare(pipeline: Any) -> None:
    """Start from blocks that do nothing, and from word embeddings of unit size: both speed the first minutes."""
    model = denoiser(pipeline)
    for name, module in model.named_modules():
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
    trained_parts(pipeline).load_state_dict(trained_parts(models.load_pipeline(name)).state_dict())


def train(
    cache: Path, name: str, minutes: float, batch: int, peak: float, seed: int, from_scratch: bool = False
) -> None:
    """Train until `minutes` of training time have been spent in all runs together.

    Resumes from the cache; where it holds no checkpoint, from the package's weights unless `from_scratch`.
    """
    torch.manual_seed(seed)
    pipeline = build_pipeline(name, load_vae(cache), cache / "scratch" / name, seed)
    prepare(pipeline)
    saved = cache / f"{name}.pt"
    if not (from_scratch or saved.exists()):
        take_package_weights(pipeline, name)
    set_training_attention(pipeline)
    parts = trained_parts(pipeline)
    parts.train()
    optimizer = torch.optim.AdamW(parts.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    average, clock, step, samples, losses = Average(parts.parameters(), 0.9985), Clock(minutes), 0, 0, []
    if saved.exists():
        state = torch.load(saved, weights_only=False)
        parts.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
        average.values, average.step, step = state["average"], state["step"], state["step"]
        clock, losses, samples = Clock(minutes, state["spent"]), state["losses"], state["samples"]
        torch.set_rng_state(state["random"])
    scenes, progress, kept_at = Scenes(cache, pipeline), Progress(clock, name), time.monotonic()
    recent: list[float] = []
    while clock.fraction < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(clock.fraction, peak)
        with torch.autocast("cpu", torch.bfloat16):
            loss = LOSSES[name](pipeline, *scenes.draw(batch), scenes.empty)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        average.update()
        step, samples = step + 1, samples + batch
        recent.append(loss.item())
        shown = float(np.mean(recent))
        clock.tick()
        if step % 100 == 0:
            losses.append((step, clock.spent, shown))
            recent.clear()
        speed = samples / clock.spent
        progress.show(f"step {step} loss {shown:.4f} rate {rate(clock.fraction, peak):.1e} {speed:.0f}/s")
        if time.monotonic() - kept_at > 120 or clock.fraction >= 1:
            kept_at = time.monotonic()
            save(
                {
                    "model": parts.state_dict(),
                    "average": average.values,
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "samples": samples,
                    "spent": clock.spent,
                    "losses": losses,
                    "scenes": len(scenes.captions),
                    "random": torch.get_rng_state(),
                },
                saved,
            )
