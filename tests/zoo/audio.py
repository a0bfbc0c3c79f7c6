"""Sounds: Stable Audio, and AudioLDM 2."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2UNet2DConditionModel,
    AutoencoderOobleck,
    EDMDPMSolverMultistepScheduler,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
)
from transformers import GPT2Config, GPT2LMHeadModel, SpeechT5HifiGan, SpeechT5HifiGanConfig

from support.pipelines import SCHEDULERS, TEXT_TOKENS, TEXT_WIDTH, image_vae, quiet
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def stable_audio() -> Any:
    """Stable Audio; its cosine scheduler is another package's, so the deterministic one of its family stands in."""
    torch.manual_seed(0)
    transformer = StableAudioDiTModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_attention_heads=1,
        cross_attention_dim=TEXT_WIDTH,
        cross_attention_input_dim=TEXT_WIDTH,
        time_proj_dim=8,
        global_states_input_dim=2 * TEXT_WIDTH,
    )
    projection = StableAudioProjectionModel(TEXT_WIDTH, conditioning_dim=TEXT_WIDTH, min_value=0, max_value=32)
    vae = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[1, 2],
        decoder_channels=4,
        decoder_input_channels=4,
        audio_channels=2,
        channel_multiples=[2, 4],
        sampling_rate=16,
    )
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500, sigma_data=1.0, prediction_type="v_prediction", sigma_schedule="exponential"
    )
    return quiet(
        StableAudioPipeline(
            transformer=awake(transformer, "cross_attention_proj.2", "attn2.to_out.0"),
            scheduler=scheduler,
            vae=vae,
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.t5_encoder(),
            projection_model=projection,
        )
    )


def sound() -> dict[str, Any]:
    return calls.TEXT | {"audio_end_in_s": 2.0}


def audioldm2() -> Any:
    """AudioLDM 2 without its CLAP; embeddings are given in place of a text."""
    torch.manual_seed(0)
    unet = AudioLDM2UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=16,
        attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=((None, TEXT_WIDTH, 2 * TEXT_WIDTH),) * 2,  # attention to itself and to both texts
    )
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=16, upsample_initial_channel=16, upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4]
        )
    )
    absent = ("text_encoder", "projection_model", "tokenizer", "tokenizer_2", "feature_extractor")
    return quiet(
        AudioLDM2Pipeline(
            unet=awake(unet, "attn2.to_v", "attn2.to_out.0"),
            scheduler=SCHEDULERS["ddim"](),
            vae=image_vae(in_channels=1, out_channels=1),
            vocoder=vocoder,
            text_encoder_2=text.t5_encoder(),  # the pipeline asks what kind it is, and the next its precision
            language_model=GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=8, n_embd=16, n_layer=1, n_head=2)),
            **dict.fromkeys(absent),
        )
    )


def encoded_sound() -> dict[str, Any]:
    def embeddings(width: int, seed: int) -> torch.Tensor:
        return text.embeddings(1, TEXT_TOKENS, width, seed=seed)

    mask = torch.ones(1, TEXT_TOKENS, dtype=torch.long)
    return {
        "prompt_embeds": embeddings(2 * TEXT_WIDTH, seed=1),
        "negative_prompt_embeds": embeddings(2 * TEXT_WIDTH, seed=2),
        "generated_prompt_embeds": embeddings(TEXT_WIDTH, seed=3),
        "negative_generated_prompt_embeds": embeddings(TEXT_WIDTH, seed=4),
        "attention_mask": mask,
        "negative_attention_mask": mask,
        "guidance_scale": 4.0,
        "audio_length_in_s": 32 * 4 / 16000,
    }


SPECIMENS = (
    Specimen("StableAudioPipeline", stable_audio, sound, output="audios"),
    Specimen("AudioLDM2Pipeline", audioldm2, encoded_sound, output="audios"),
)
