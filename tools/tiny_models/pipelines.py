"""The shapes of the tiny models: tokenizers, text encoders, VAE, denoisers and schedulers, all untrained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from hybridiff.models.tiny.scenes import COLOURS, POSITIONS, SHAPES, SIZES

PIPELINES = {"tiny-sdxl": StableDiffusionXLPipeline, "tiny-sd3": StableDiffusion3Pipeline}
LATENT_SIDE = 16
TEXT_LENGTH = 20  # tokens of one encoder; the longest caption of the grammar has 16 with its two end marks
TEXT_WIDTH = 64
TIME_IDS = (128, 128, 0, 0, 128, 128)  # what the stock SDXL pipeline passes: original size, crop, target size


def build_vae() -> AutoencoderKL:
    """A VAE with four levels (1/8 of the side) and four latent channels."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 16, 32, 64),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
        shift_factor=0.0,
    )
    with torch.no_grad():  # little noise at first: with variance 1 the decoder learns nothing for minutes
        vae.quant_conv.weight[4:] *= 0.1
        vae.quant_conv.bias[4:] = -5.0
    return vae


def build_unet() -> UNet2DConditionModel:
    """SDXL's U-Net in small: attention on the two inner levels, text, pooled text and the six size numbers."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIDE,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(48, 64, 96),
        layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 4, 4),  # diffusers reads it as the number of heads
        norm_num_groups=16,
        cross_attention_dim=2 * TEXT_WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TEXT_WIDTH + 6 * 8,
    )


def build_transformer() -> SD3Transformer2DModel:
    """SD3's transformer in small: 64 image tokens, 12 joint blocks."""
    return SD3Transformer2DModel(
        sample_size=LATENT_SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=12,
        attention_head_dim=24,
        num_attention_heads=4,
        joint_attention_dim=2 * TEXT_WIDTH,
        caption_projection_dim=96,
        pooled_projection_dim=2 * TEXT_WIDTH,
        pos_embed_max_size=24,
        qk_norm="rms_norm",
    )


def build_scheduler(name: str) -> DDIMScheduler | FlowMatchEulerDiscreteScheduler:
    """v-prediction with zero terminal signal for tiny-sdxl, rectified flow with shift 3 for tiny-sd3."""
    if name == "tiny-sd3":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP tokenizer with one token a word of the grammar; other text falls into bytes and common pieces."""
    vocab, merges = _vocabulary()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False, indent=0) + "\n")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=TEXT_LENGTH)


def vocabulary() -> list[str]:
    """Every word of the captions' grammar, sorted."""
    words = {"a", "an", "the", "at", "in", "on", "of", "above", "below", "background"}
    return sorted(words.union(SHAPES, SIZES, COLOURS, POSITIONS))


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    letters = _byte_letters()
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in vocabulary():
        pieces = _merged([*word[:-1], word[-1] + "</w>"], merges)
        while len(pieces) > 1:  # later merges rank lower, so they leave the words before intact
            merges.append((pieces[0], pieces[1]))
            tokens.append(pieces[0] + pieces[1])
            pieces = _merged(pieces, merges[-1:])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate(tokens)}, merges


def _merged(pieces: list[str], merges: list[tuple[str, str]]) -> list[str]:
    """Byte pair encoding of one word: every merge in the order of its rank."""
    for left, right in merges:
        index = 0
        while index < len(pieces) - 1:
            if (pieces[index], pieces[index + 1]) == (left, right):
                pieces = [*pieces[:index], left + right, *pieces[index + 2 :]]
            index += 1
    return pieces


def _byte_letters() -> list[str]:
    """The 256 printable letters that stand for bytes in byte-level pair encoding."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [256 + index for index in range(256 - len(printable))]
    return [chr(code) for code in printable + shifted]


def build_text_encoder(tokenizer: CLIPTokenizer, projected: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    """Three causal layers; the pipelines read the states before the last one, and the pooled end mark."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def build_pipeline(name: str, vae: AutoencoderKL, scratch: Path, seed: int = 0) -> Any:
    """An untrained pipeline of the final shape, around a VAE that may be trained."""
    torch.manual_seed(seed)
    first = build_tokenizer(scratch / "tokenizer")
    second = build_tokenizer(scratch / "tokenizer_2")
    parts: dict[str, Any] = {
        "vae": vae,
        "tokenizer": first,
        "tokenizer_2": second,
        "scheduler": build_scheduler(name),
        "text_encoder": build_text_encoder(first, projected=name == "tiny-sd3"),
        "text_encoder_2": build_text_encoder(second, projected=True),
    }
    if name == "tiny-sd3":
        return StableDiffusion3Pipeline(transformer=build_transformer(), text_encoder_3=None, tokenizer_3=None, **parts)
    return StableDiffusionXLPipeline(
        unet=build_unet(), force_zeros_for_empty_prompt=True, add_watermarker=False, **parts
    )


def export(pipeline: Any, folder: Path) -> None:
    """Save in half precision under the standard file names, so that `from_pretrained(folder)` needs no argument."""
    kept = pipeline.dtype
    pipeline.to(torch.float16)
    pipeline.save_pretrained(folder)
    pipeline.to(kept)
    for config in folder.glob("text_encoder*/config.json"):
        fields = json.loads(config.read_text())
        # transformers would load the dtype noted here, diffusers float32: say float32 so that both agree
        fields["dtype"] = "float32"
        config.write_text(json.dumps(fields, indent=2) + "\n")
    for weights in folder.rglob("*.safetensors"):
        weights.chmod(0o644)
    for tokenizer in ("tokenizer", "tokenizer_2"):
        build_tokenizer(folder / tokenizer)  # vocab.json and merges.txt, for readers of the older layout
