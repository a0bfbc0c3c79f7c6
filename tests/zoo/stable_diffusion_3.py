"""Stable Diffusion 3 and 3.5: text, image, inpainting, ControlNet, skip-layer guidance, perturbed attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import SD3ControlNetModel

from support import pipelines
from support.pipelines import TEXT_TOKENS
from zoo import calls
from zoo.networks import awake, with_parts_of
from zoo.specimen import Specimen

SD3 = "StableDiffusion3Pipeline"


def short(call: Callable[[], dict[str, Any]], **more: Any) -> Callable[[], dict[str, Any]]:
    """The call without the many zeros in the place of T5's tokens."""
    return calls.with_arguments(call, max_sequence_length=TEXT_TOKENS, **more)


def sd3(name: str = SD3, **settings: Any) -> Any:
    """Stable Diffusion 3; its class of pipeline is made of the stock one's parts."""
    pipe = pipelines.sd3(**settings)
    awake(pipe.transformer)
    return with_parts_of(pipe, name)


def with_controlnet(name: str, extra_channels: int = 0) -> Any:
    pipe = sd3(channels=16 if extra_channels else 4)
    torch.manual_seed(4)
    sizes = {"num_layers": 2, "extra_conditioning_channels": extra_channels}
    controlnet = SD3ControlNetModel.from_config(pipe.transformer.config, **sizes)
    return with_parts_of(pipe, name, controlnet=awake(controlnet))


def text_and_control() -> dict[str, Any]:
    return calls.text() | {"control_image": pipelines.start_image()}


def text_and_masked_control() -> dict[str, Any]:
    return text_and_control() | {"control_mask": pipelines.mask()}


PERTURBED = {"pag_scale": 2.0}
SKIPPED = {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.9}

SPECIMENS = (
    Specimen(SD3, sd3, short(calls.text)),
    Specimen(f"{SD3}:3.5", partial(sd3, dual_attention=True), short(calls.text)),
    Specimen(f"{SD3}:skip-layer", sd3, short(calls.text, **SKIPPED), layout="branches"),
    Specimen(
        "StableDiffusion3Img2ImgPipeline",
        partial(sd3, "StableDiffusion3Img2ImgPipeline"),
        short(calls.image),
    ),
    Specimen(
        "StableDiffusion3InpaintPipeline",
        partial(sd3, "StableDiffusion3InpaintPipeline", channels=16),
        short(calls.inpaint),
    ),
    Specimen(
        "StableDiffusion3ControlNetPipeline",
        partial(with_controlnet, "StableDiffusion3ControlNetPipeline"),
        short(text_and_control),
    ),
    Specimen(
        "StableDiffusion3ControlNetInpaintingPipeline",
        partial(with_controlnet, "StableDiffusion3ControlNetInpaintingPipeline", extra_channels=1),
        short(text_and_masked_control),
    ),
    Specimen(
        "StableDiffusion3PAGImg2ImgPipeline",
        partial(sd3, "StableDiffusion3PAGImg2ImgPipeline"),
        short(calls.image, **PERTURBED),
        layout="branches",
    ),
    Specimen(
        "StableDiffusion3PAGPipeline",
        partial(sd3, "StableDiffusion3PAGPipeline"),
        short(calls.text, **PERTURBED),
        layout="branches",
    ),
)
