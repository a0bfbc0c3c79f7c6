"""What a decoder makes of errors in latents."""

from __future__ import annotations

from typing import Any

import torch

USUAL_GAIN = 0.37
"""Of decoders that cannot be measured: about that of both embedded models."""


@torch.no_grad()
def decoder_gain(pipe: Any, side: int = 16, error: float = 0.02) -> float:
    """Root mean square error of decoded images, with values from 0 to 1, per root mean square error of latents.

    One small noise latent is decoded twice, with an error and without.

    Args:
        pipe: The pipeline.
        side: Height and width of the latent.
        error: Root mean square of the error.
    """
    vae = getattr(pipe, "vae", None)
    channels = getattr(getattr(vae, "config", None), "latent_channels", None)
    if vae is None or channels is None:
        return USUAL_GAIN
    generator = torch.Generator("cpu").manual_seed(0)
    latent, noise = (torch.randn(1, channels, side, side, generator=generator, device="cpu") for _ in range(2))
    device = getattr(pipe, "_execution_device", vae.device)  # where an offloaded decoder runs
    try:
        images = [_decode(vae, latents.to(device)) for latents in (latent, latent + error * noise)]
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # one of films, or of another kind
        return USUAL_GAIN
    gain = float((images[1] - images[0]).square().mean().sqrt() / (2 * error))
    return gain if 0 < gain < float("inf") else USUAL_GAIN


def _decode(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Images from -1 to 1."""
    scaled = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    images: torch.Tensor = vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
    return images.float().cpu()
