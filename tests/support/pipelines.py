"""Tiny pipelines with random weights, built in code: every part is real and small, and the text matters to them."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

diffusers.utils.logging.set_verbosity_error()

SIZE = 32  # pixels; the VAE makes 16 x 16 latents of them
TEXT_TOKENS = 12
TEXT_WIDTH = 16

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}

SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ddim": lambda: diffusers.DDIMScheduler(**_BETAS, clip_sample=False),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**_BETAS),
    "euler-ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**_BETAS),
    "dpmsolver++": lambda: diffusers.DPMSolverMultistepScheduler(**_BETAS, algorithm_type="dpmsolver++"),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**_BETAS),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**_BETAS),
    "flow-euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
}


def sdxl(pipeline: str = "StableDiffusionXLPipeline", levels: int = 3, in_channels: int = 4) -> Any:
    """A pipeline of the SDXL family, with its two text encoders; three levels as SDXL has, or two."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=SIZE // 2,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(16, 16, 32)[:levels],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")[:levels],
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")[-levels:],
        transformer_layers_per_block=(1, 1, 2)[:levels],
        attention_head_dim=(2, 2, 4)[:levels],
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 4,
    )
    pipe = getattr(diffusers, pipeline)(
        unet=listen_to_text(unet, ".attn2.to_v", ".attn2.to_out.0", "add_embedding.linear_2"),
        scheduler=SCHEDULERS["euler"](),
        vae=image_vae(),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        text_encoder=clip_text_encoder(CLIPTextModel),
        text_encoder_2=clip_text_encoder(CLIPTextModelWithProjection),
        force_zeros_for_empty_prompt=False,
    )
    return quiet(pipe)


def sd15(pipeline: str = "StableDiffusionPipeline", in_channels: int = 4, **settings: Any) -> Any:
    """A pipeline with the U-Net of Stable Diffusion 1.5, smaller by one level, and its one text encoder.

    `settings` replaces or adds some of the U-Net.
    """
    torch.manual_seed(0)
    config = {
        "sample_size": SIZE // 2,
        "in_channels": in_channels,
        "out_channels": 4,
        "block_out_channels": (16, 16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 2,
        "layers_per_block": 2,
        "norm_num_groups": 8,
        "cross_attention_dim": TEXT_WIDTH,
    }
    unet = UNet2DConditionModel(**config | settings)
    pipe = getattr(diffusers, pipeline)(
        unet=listen_to_text(unet, ".attn2.to_v", ".attn2.to_out.0"),
        scheduler=SCHEDULERS["ddim"](),
        vae=image_vae(),
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text_encoder(CLIPTextModel),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return quiet(pipe)


def sd3(
    pipeline: str = "StableDiffusion3Pipeline", dual_attention: bool = False, channels: int = 4, blocks: int = 4
) -> Any:
    """A pipeline of the SD3 family with its two CLIP encoders and no T5; `dual_attention` makes it one like SD3.5."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=SIZE // 2,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=blocks,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=24,
        qk_norm="rms_norm" if dual_attention else None,
        dual_attention_layers=(0, 1) if dual_attention else (),
    )
    pipe = getattr(diffusers, pipeline)(
        transformer=listen_to_text(transformer, "text_embedder.linear_2", "context_embedder", factor=24.0),
        scheduler=SCHEDULERS["flow-euler"](),
        vae=image_vae(channels, shift_factor=0.06),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=None,
        text_encoder=clip_text_encoder(CLIPTextModelWithProjection),
        text_encoder_2=clip_text_encoder(CLIPTextModelWithProjection),
        text_encoder_3=None,
    )
    return quiet(pipe)


PIPELINES: dict[str, Callable[[], Any]] = {
    "sdxl": sdxl,
    "sdxl two levels": lambda: sdxl(levels=2),
    "sdxl img2img": lambda: sdxl("StableDiffusionXLImg2ImgPipeline"),
    "sdxl inpaint": lambda: sdxl("StableDiffusionXLInpaintPipeline"),
    "sdxl inpaint 9 channels": lambda: sdxl("StableDiffusionXLInpaintPipeline", in_channels=9),
    "sd15": sd15,
    "sd15 img2img": lambda: sd15("StableDiffusionImg2ImgPipeline"),
    "sd15 inpaint 9 channels": lambda: sd15("StableDiffusionInpaintPipeline", in_channels=9),
    "sd3": sd3,
    "sd3.5": lambda: sd3(dual_attention=True),
    "sd3 deep": lambda: sd3(blocks=9),
    "sd3 img2img": lambda: sd3("StableDiffusion3Img2ImgPipeline"),
    "sd3 inpaint": lambda: sd3("StableDiffusion3InpaintPipeline", channels=16),
}


def build(name: str, scheduler: str | None = None) -> Any:
    """The pipeline of that name, the same weights at every call."""
    pipe = PIPELINES[name]()
    if scheduler is not None:
        pipe.scheduler = SCHEDULERS[scheduler]()
    return pipe


def call_arguments(name: str, seed: int = 3, **changes: Any) -> dict[str, Any]:
    """Arguments of a call that ends in latents, with a fresh generator; `changes` replaces or adds some."""
    arguments: dict[str, Any] = {
        "prompt": "a red ring",
        "negative_prompt": "blurred",
        "num_inference_steps": 4,
        "guidance_scale": 5.0,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "latent",
    }
    if "img2img" in name or "inpaint" in name:
        arguments |= {"image": start_image(), "strength": 0.8}
    else:
        arguments |= {"height": SIZE, "width": SIZE}
    if "inpaint" in name:
        arguments |= {"mask_image": mask(), "height": SIZE, "width": SIZE}
    if name.startswith("sd3"):
        arguments |= {"max_sequence_length": TEXT_TOKENS}  # without T5, so many zero tokens
    return arguments | changes


def generate(pipe: Any, name: str, **changes: Any) -> torch.Tensor:
    """The latents that a stock or a parallel pipeline generates."""
    latents = pipe(**call_arguments(name, **changes)).images
    assert isinstance(latents, torch.Tensor)
    return latents


def start_image() -> Image.Image:
    """An image to start from: a colour gradient."""
    ramp = Image.linear_gradient("L").resize((SIZE, SIZE))
    return Image.merge("RGB", (ramp, ramp.rotate(90), ramp.rotate(180)))


def mask() -> Image.Image:
    """The right half is to be painted."""
    half = Image.new("L", (SIZE, SIZE), 0)
    half.paste(255, (SIZE // 2, 0, SIZE, SIZE))
    return half


def denoiser_of(pipe: Any) -> torch.nn.Module:
    """The network of a pipeline."""
    network = getattr(pipe, "unet", None) or pipe.transformer
    assert isinstance(network, torch.nn.Module)
    return network


def listen_to_text(network: torch.nn.Module, *parts: str, factor: float = 8.0) -> torch.nn.Module:
    """Strengthen the layers by which the text comes in; freshly initialised ones let hardly any of it through."""
    found = [module for name, module in network.named_modules() if name.endswith(parts)]
    assert len(found) >= len(parts), f"{parts} not found"
    with torch.no_grad():
        for module in found:
            assert isinstance(module, torch.nn.Linear)
            module.weight.mul_(factor)
    return network


def image_vae(channels: int = 4, levels: int = 2, **config: Any) -> AutoencoderKL:
    """An autoencoder of images; each of its levels but the last halves height and width."""
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=[8] * levels,
        down_block_types=["DownEncoderBlock2D"] * levels,
        up_block_types=["UpDecoderBlock2D"] * levels,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=SIZE,
        **config,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """A tokenizer that spells: one token a letter."""
    letters = list(string.ascii_lowercase)
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=TEXT_TOKENS)


def clip_text_encoder(encoder: type) -> Any:
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=52,
        eos_token_id=53,
        pad_token_id=53,
    )
    model = encoder(config).eval()
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(50)  # the letters count for more than their places
    return model


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
