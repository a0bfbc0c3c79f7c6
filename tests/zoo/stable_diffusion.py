"""Stable Diffusion 1.5 and 2: text, image, inpainting, ControlNet, editing by instructions, perturbed attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import diffusers

from support import pipelines
from zoo import calls
from zoo.networks import awake, controlled, with_parts_of
from zoo.specimen import Specimen


def sd2() -> Any:
    """Stable Diffusion 2: it predicts velocities, its attention heads are of one width, its projections linear."""
    pipe = pipelines.sd15(attention_head_dim=(2, 2, 4), use_linear_projection=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction")
    return pipe


def plain(name: str, call: Callable[[], dict[str, Any]], **settings: Any) -> Specimen:
    return Specimen(name, partial(pipelines.sd15, name.partition(":")[0], **settings), call)


def with_controlnet(name: str, call: Callable[[], dict[str, Any]]) -> Specimen:
    return Specimen(name, lambda: controlled(pipelines.sd15(), name), call)


def instructed(name: str) -> Specimen:
    return Specimen(name, lambda: with_parts_of(pipelines.sd15(in_channels=8), name), calls.edit, layout="branches")


def perturbed(name: str, call: Callable[[], dict[str, Any]] = calls.text) -> Specimen:
    def build() -> Any:
        pipe = pipelines.sd15()
        awake(pipe.unet, "attn1.to_v", "attn1.to_out.0")  # or it is hardly seen that they attend to nothing
        return with_parts_of(pipe, name, pag_applied_layers=["down", "mid", "up"])

    return Specimen(name, build, calls.with_arguments(call, pag_scale=2.0), layout="branches")


SPECIMENS = (
    plain("StableDiffusionPipeline", calls.text),
    Specimen("StableDiffusionPipeline:2", sd2, calls.text),
    plain("StableDiffusionImg2ImgPipeline", calls.image),
    plain("StableDiffusionInpaintPipeline", calls.inpaint),
    plain("StableDiffusionInpaintPipeline:9-channels", calls.inpaint, in_channels=9),
    with_controlnet("StableDiffusionControlNetPipeline", calls.control),
    with_controlnet("StableDiffusionControlNetImg2ImgPipeline", calls.control_image),
    with_controlnet("StableDiffusionControlNetInpaintPipeline", calls.control_inpaint),
    instructed("StableDiffusionInstructPix2PixPipeline"),
    perturbed("StableDiffusionPAGPipeline"),
    perturbed("StableDiffusionPAGImg2ImgPipeline", calls.image),
    perturbed("StableDiffusionPAGInpaintPipeline", calls.inpaint),
)
