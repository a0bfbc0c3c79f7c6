"""The Qwen-Image family: a conditional call, then an unconditional one with a text of another length."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan, QwenImageControlNetModel, QwenImageTransformer2DModel
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from support.pipelines import SIZE, mask, start_image
from zoo import text
from zoo.parts import assemble, dynamic_flow, embeddings, enliven
from zoo.specimen import Specimen

TEXT = 16
LATENTS = 4
EDIT_SIZE = 256

_WIDTHS: dict[str, Any] = {
    "patch_size": 2,
    "in_channels": 4 * LATENTS,
    "out_channels": LATENTS,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "axes_dims_rope": (8, 4, 4),
}


def qwen_image(pipeline: str, vae: Callable[[], torch.nn.Module] | None = None, **others: Any) -> Any:
    """A pipeline of the family."""
    return assemble(
        getattr(diffusers, pipeline),
        transformer=enliven(QwenImageTransformer2DModel(**_WIDTHS)),
        vae=(vae or qwen_vae)(),
        scheduler=dynamic_flow(),
        text_encoder=_text_encoder(),
        tokenizer=text.spelling_tokenizer(length=256),  # the pipeline drops the first 34 tokens, its instructions
        **others,
    )


def _text_encoder() -> Any:
    """A Qwen 2.5 VL; its tokens for images come after the letters."""
    letters = len(text.VOCABULARY)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": letters + 4,
            "hidden_size": TEXT,
            "intermediate_size": 2 * TEXT,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_scaling": {"mrope_section": [1, 1, 2], "rope_type": "default", "type": "default"},
            "bos_token_id": text.VOCABULARY[text.START],
            "eos_token_id": text.VOCABULARY[text.END],
            "pad_token_id": text.VOCABULARY[text.PAD],
        },
        vision_config={
            "depth": 1,
            "hidden_size": TEXT,
            "intermediate_size": 2 * TEXT,
            "num_heads": 2,
            "out_hidden_size": TEXT,
            "fullatt_block_indexes": [0],
        },
        image_token_id=letters,
        video_token_id=letters + 1,
        vision_start_token_id=letters + 2,
        vision_end_token_id=letters + 3,
    )
    return text.seeded(Qwen2_5_VLForConditionalGeneration, config)


def qwen_vae() -> torch.nn.Module:
    """The VAE of Qwen-Image, 4 pixels a latent."""
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=LATENTS,
        dim_mult=[1] * 3,
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * LATENTS,
        latents_std=[1.0] * LATENTS,
    )
    return enliven(vae, seed=1)


def editing_vae() -> torch.nn.Module:
    """A VAE of 32 pixels a latent, 16 of them by its patches, since editing brings every image to a megapixel."""
    vae = AutoencoderKLWan(
        base_dim=4,
        z_dim=LATENTS,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False] * 5,  # one level; the pipeline counts this list as the scale, 2 ** 5
        patch_size=16,
        in_channels=3 * 16 * 16,
        out_channels=3 * 16 * 16,
        latents_mean=[0.0] * LATENTS,
        latents_std=[1.0] * LATENTS,
    )
    return enliven(vae, seed=1)


def _guided(size: int = SIZE, **others: Any) -> dict[str, Any]:
    return {
        "prompt_embeds": embeddings(1, 8, TEXT),
        "prompt_embeds_mask": torch.ones(1, 8, dtype=torch.long),
        "negative_prompt_embeds": embeddings(1, 6, TEXT, seed=2),
        "negative_prompt_embeds_mask": torch.ones(1, 6, dtype=torch.long),
        "true_cfg_scale": 4.0,
        "height": size,
        "width": size,
    } | others


def _of_words() -> dict[str, Any]:
    words = {"prompt": "a red ring", "negative_prompt": "blurred"}
    return words | {"true_cfg_scale": 4.0, "height": SIZE, "width": SIZE}


def _controlnet() -> torch.nn.Module:
    return enliven(QwenImageControlNetModel(**_WIDTHS), gain=0.5, seed=2)


SPECIMENS = (
    Specimen("QwenImagePipeline", lambda: qwen_image("QwenImagePipeline"), _of_words, "sequential"),
    Specimen(
        "QwenImageImg2ImgPipeline",
        lambda: qwen_image("QwenImageImg2ImgPipeline"),
        lambda: _guided(image=start_image(), strength=0.8),
        "sequential",
    ),
    Specimen(
        "QwenImageInpaintPipeline",
        lambda: qwen_image("QwenImageInpaintPipeline"),
        lambda: _guided(image=start_image(), mask_image=mask(), strength=0.8),
        "sequential",
    ),
    Specimen(
        "QwenImageEditPipeline",
        lambda: qwen_image("QwenImageEditPipeline", editing_vae, processor=None),
        lambda: _guided(EDIT_SIZE, image=start_image()),
        "sequential",
    ),
    Specimen(
        "QwenImageEditPlusPipeline",
        lambda: qwen_image("QwenImageEditPlusPipeline", editing_vae, processor=None),
        lambda: _guided(EDIT_SIZE, image=[start_image()]),
        "sequential",
    ),
    Specimen(
        "QwenImageControlNetPipeline",
        lambda: qwen_image("QwenImageControlNetPipeline", controlnet=_controlnet()),
        lambda: _guided(control_image=start_image(), controlnet_conditioning_scale=0.7),
        "sequential",
    ),
    Specimen(
        "QwenImageEditInpaintPipeline",
        lambda: qwen_image("QwenImageEditInpaintPipeline", editing_vae, processor=None),
        lambda: _guided(EDIT_SIZE, image=start_image(), mask_image=mask(), strength=0.8),
        "sequential",
    ),
)
