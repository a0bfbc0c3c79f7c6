"""What specimens are made of: random weights that let the text through, embeddings in place of a text encoder."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

diffusers.utils.logging.set_verbosity_error()


def enliven(network: torch.nn.Module, gain: float = 1.0, seed: int = 0) -> torch.nn.Module:
    """Draw all weights anew, layers that start at zero or uninitialised included; scales of norms stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, gain * weight[0].numel() ** -0.5, generator=generator)
            elif not name.endswith("weight"):
                weight.normal_(0, 0.1, generator=generator)
    return network.eval()


def assemble(pipeline: type, **components: Any) -> Any:
    """A pipeline of these components, without a progress bar; modules in evaluation mode."""
    pipe = pipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embeddings(*shape: int, seed: int = 1) -> torch.Tensor:
    """What a text encoder might say: normal numbers, others for each seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image_vae(channels: int = 4, **config: Any) -> AutoencoderKL:
    """A VAE of two levels, so that 32 pixels become 16 latents."""
    vae = AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **{"scaling_factor": 1.5, "shift_factor": 0.06} | config,
    )
    return enliven(vae, seed=1)


def wan_vae() -> AutoencoderKLWan:
    """The video VAE of Wan, as narrow as it goes: 8 pixels a latent, 4 frames a latent."""
    vae = AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )
    return enliven(vae, seed=1)


def dynamic_flow() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of FLUX and Qwen-Image, whose shift depends on the number of tokens."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)


def flow_unipc() -> UniPCMultistepScheduler:
    """The scheduler of Wan."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
