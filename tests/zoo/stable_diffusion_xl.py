"""Stable Diffusion XL: text, image, inpainting, ControlNet, IP-Adapter, editing, perturbed attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import ControlNetUnionModel

from support import pipelines
from support.pipelines import TEXT_WIDTH
from zoo import calls
from zoo.networks import awake, controlled, with_parts_of
from zoo.specimen import Specimen


def with_ip_adapter() -> Any:
    """The SDXL pipeline with an IP-Adapter of four image tokens; its image is given as an embedding."""
    pipe = pipelines.sdxl()
    generator = torch.Generator().manual_seed(6)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    layers = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    widths = [pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features for name in layers]
    weights = {
        f"{2 * index + 1}.to_{part}_ip.weight": numbers(width, 2 * TEXT_WIDTH)
        for index, width in enumerate(widths)
        for part in "kv"
    }
    projection = {
        "proj.weight": numbers(4 * 2 * TEXT_WIDTH, TEXT_WIDTH),
        "proj.bias": numbers(4 * 2 * TEXT_WIDTH),
        "norm.weight": torch.ones(2 * TEXT_WIDTH),
        "norm.bias": torch.zeros(2 * TEXT_WIDTH),
    }
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    return pipe


def image_prompt() -> dict[str, Any]:
    """A call whose image prompt is an embedding, behind one of zeros for the unconditional branch."""
    embedding = torch.randn(1, 1, TEXT_WIDTH, generator=torch.Generator().manual_seed(7))
    return calls.text() | {"ip_adapter_image_embeds": [torch.cat([torch.zeros_like(embedding), embedding])]}


def plain(name: str, call: Callable[[], dict[str, Any]], **settings: Any) -> Specimen:
    return Specimen(name, partial(pipelines.sdxl, name.partition(":")[0], **settings), call)


def with_controlnet(name: str, call: Callable[[], dict[str, Any]]) -> Specimen:
    return Specimen(name, lambda: controlled(pipelines.sdxl(), name), call)


def with_union(name: str, call: Callable[[], dict[str, Any]]) -> Specimen:
    """One with a ControlNet for images of several kinds, given one of the fourth kind."""
    sizes = {"num_trans_channel": 16, "num_trans_head": 2, "num_proj_channel": 16}

    def build() -> Any:
        return controlled(pipelines.sdxl(), name, ControlNetUnionModel, **sizes)

    return Specimen(name, build, lambda: call() | {"control_image": [pipelines.start_image()], "control_mode": [3]})


def instructed(name: str) -> Specimen:
    return Specimen(name, lambda: with_parts_of(pipelines.sdxl(in_channels=8), name), calls.edit, layout="branches")


def perturbed(name: str, call: Callable[[], dict[str, Any]] = calls.text) -> Specimen:
    def build() -> Any:
        pipe = pipelines.sdxl()
        awake(pipe.unet, "attn1.to_v", "attn1.to_out.0")  # or it is hardly seen that they attend to nothing
        return with_parts_of(pipe, name, pag_applied_layers=["down", "mid", "up"])

    return Specimen(name, build, calls.with_arguments(call, pag_scale=2.0), layout="branches")


SPECIMENS = (
    plain("StableDiffusionXLPipeline", calls.text),
    Specimen("StableDiffusionXLPipeline:ip-adapter", with_ip_adapter, image_prompt),
    Specimen(
        "StableDiffusionXLPipeline:unguided",
        pipelines.sdxl,
        calls.with_arguments(calls.text, guidance_scale=1.0),
        layout="single",
    ),
    plain("StableDiffusionXLImg2ImgPipeline", calls.image),
    plain("StableDiffusionXLInpaintPipeline", calls.inpaint),
    plain("StableDiffusionXLInpaintPipeline:9-channels", calls.inpaint, in_channels=9),
    with_controlnet("StableDiffusionXLControlNetPipeline", calls.control),
    with_controlnet("StableDiffusionXLControlNetImg2ImgPipeline", calls.control_image),
    with_controlnet("StableDiffusionXLControlNetInpaintPipeline", calls.control_inpaint),
    with_union("StableDiffusionXLControlNetUnionPipeline", calls.text),
    with_union("StableDiffusionXLControlNetUnionImg2ImgPipeline", calls.image),
    with_union("StableDiffusionXLControlNetUnionInpaintPipeline", calls.inpaint),
    instructed("StableDiffusionXLInstructPix2PixPipeline"),
    perturbed("StableDiffusionXLPAGPipeline"),
    perturbed("StableDiffusionXLPAGImg2ImgPipeline", calls.image),
    perturbed("StableDiffusionXLPAGInpaintPipeline", calls.inpaint),
)
