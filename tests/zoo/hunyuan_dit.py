"""HunyuanDiT, with its BERT and its T5; with ControlNet; with perturbed attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers import HunyuanDiT2DControlNetModel, HunyuanDiT2DModel

from support.pipelines import SIZE, TEXT_WIDTH, image_vae, quiet, start_image
from zoo import calls, text
from zoo.networks import awake
from zoo.specimen import Specimen


def hunyuan_dit(name: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    transformer = HunyuanDiT2DModel(
        sample_size=SIZE // 2,
        num_layers=4,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        hidden_size=16,
        in_channels=4,
        cross_attention_dim=TEXT_WIDTH,
        cross_attention_dim_t5=TEXT_WIDTH,
        pooled_projection_dim=16,
        **settings,
    )
    return quiet(
        getattr(diffusers, name)(
            transformer=awake(transformer, "text_embedder.linear_2", "attn1.to_v", "attn1.to_out.0"),
            scheduler=diffusers.DDPMScheduler(
                beta_start=0.00085, beta_end=0.018, beta_schedule="scaled_linear", prediction_type="v_prediction"
            ),
            vae=image_vae(levels=4),
            tokenizer=text.spelling_tokenizer(),
            text_encoder=text.bert(),
            tokenizer_2=text.spelling_tokenizer(),
            text_encoder_2=text.t5_encoder(multilingual=True),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **({"controlnet": controlnet(transformer)} if "ControlNet" in name else {}),
        )
    )


def controlnet(transformer: Any) -> Any:
    """A ControlNet of half as many layers as the transformer, which is what the transformer expects."""
    torch.manual_seed(4)
    return awake(
        HunyuanDiT2DControlNetModel.from_transformer(
            transformer, transformer_num_layers=4, load_weights_from_transformer=False
        )
    )


def call() -> dict[str, Any]:
    """A call for 16 x 16 latents: the pipeline takes for granted that the autoencoder divides by 8."""
    return calls.text() | {"height": 128, "width": 128, "use_resolution_binning": False}


def control() -> dict[str, Any]:
    return call() | {"control_image": start_image()}


SPECIMENS = (
    Specimen("HunyuanDiTControlNetPipeline", partial(hunyuan_dit, "HunyuanDiTControlNetPipeline"), control),
    Specimen("HunyuanDiTPipeline", partial(hunyuan_dit, "HunyuanDiTPipeline"), call),
    Specimen(
        "HunyuanDiTPAGPipeline",
        partial(hunyuan_dit, "HunyuanDiTPAGPipeline", use_style_cond_and_image_meta_size=False),  # as version 1.2
        calls.with_arguments(call, pag_scale=2.0),
        layout="branches",
    ),
)
