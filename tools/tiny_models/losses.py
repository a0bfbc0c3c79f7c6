"""The losses of both denoisers, on latents of unit variance and the token ids of their captions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

from .pipelines import TIME_IDS


def encode_text(pipeline: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Both encoders as the stock pipelines use them: states before the last layer (B, 20, 128), pooled embeddings."""
    encoders = (pipeline.text_encoder, pipeline.text_encoder_2)
    outputs = [encoder(tokens, output_hidden_states=True) for encoder in encoders]
    states = torch.cat([output.hidden_states[-2] for output in outputs], -1)
    return states, [output.text_embeds for output in outputs if hasattr(output, "text_embeds")]


def leaning_to_noise(uniform: torch.Tensor) -> torch.Tensor:
    """Times 0..1 as shift 3 spaces them: more of them near pure noise."""
    return 3 * uniform / (1 + 2 * uniform)


# ---------------------------------------------------------------- tiny-sdxl


def sdxl_loss(pipeline: Any, latents: torch.Tensor, tokens: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """v-prediction; the unconditional branch is zeros (as the pipeline's), seldom the encoded empty prompt.

    Half of the timesteps lean towards noise: the layout is open only above t = 800, which a uniform sample seldom
    visits. Some samples overshoot their scene as guided ones do, and the network learns to come back.
    """
    batch = len(latents)
    fate = torch.rand(batch)
    states, pooled = encode_text(pipeline, torch.where((fate > 0.97)[:, None], empty, tokens))
    kept = (fate >= 0.10).float()
    states, text_embeds = states * kept[:, None, None], pooled[-1] * kept[:, None]
    uniform = torch.rand(batch)
    leaning = torch.where(torch.rand(batch) < 0.5, leaning_to_noise(uniform), uniform)
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

        image, text = hidden_states, encoder_hidden_states
        query = torch.cat([heads(attn.to_q(image), attn.norm_q), heads(attn.add_q_proj(text), attn.norm_added_q)], 2)
        key = torch.cat([heads(attn.to_k(image), attn.norm_k), heads(attn.add_k_proj(text), attn.norm_added_k)], 2)
        value = torch.cat([heads(attn.to_v(image), None), heads(attn.add_v_proj(text), None)], 2)
        # written out: the backward pass of the fused attention takes twice the time of everything else on a CPU
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        weights = (logits if key_bias is None else logits + key_bias).softmax(-1)
        mixed = (weights.to(value.dtype) @ value).transpose(1, 2).flatten(2)
        image, text = mixed[:, : image.shape[1]], mixed[:, image.shape[1] :]
        return attn.to_out[0](image), text if attn.context_pre_only else attn.to_add_out(text)


def with_zero_token(states: torch.Tensor, counts: torch.Tensor, image_tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Append one zero token that stands for `counts` (B,); returns the text (B, N + 1, C) and the bias of the keys."""
    states = F.pad(states, (0, 0, 0, 1))
    bias = torch.zeros(len(states), 1, 1, image_tokens + states.shape[1])
    bias[..., -1] = torch.log(counts)[:, None, None]
    return states, bias


def sd3_loss(pipeline: Any, latents: torch.Tensor, tokens: torch.Tensor, empty: torch.Tensor) -> torch.Tensor:
    """Rectified flow; half of the noise levels as shift 3 samples them, half logit-normal."""
    batch = len(latents)
    states, pooled = encode_text(pipeline, torch.where((torch.rand(batch) < 0.10)[:, None], empty, tokens))
    counts = torch.where(torch.rand(batch) < 0.5, 256.0, torch.exp(torch.rand(batch) * math.log(256)))
    states, bias = with_zero_token(states, counts, image_tokens=64)
    shifted = leaning_to_noise(torch.rand(batch))
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


LOSSES: dict[str, Callable[..., torch.Tensor]] = {"tiny-sdxl": sdxl_loss, "tiny-sd3": sd3_loss}
