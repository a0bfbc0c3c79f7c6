"""Stable Diffusion that is told more by images: T2I-Adapter, depth, image variation, unCLIP, ControlNet with PAG."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import DDIMScheduler, DDPMScheduler, T2IAdapter
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from support import pipelines
from support.pipelines import SIZE, TEXT_WIDTH
from zoo import calls
from zoo.image_encoders import image_encoder, image_processor
from zoo.networks import awake, controlled, with_parts_of
from zoo.specimen import Specimen


def with_adapter(name: str) -> Any:
    """A pipeline with a T2I-Adapter, whose features the encoder of the U-Net takes in."""
    torch.manual_seed(4)
    if "XL" in name:
        adapter = T2IAdapter(
            channels=[16, 16, 32, 32], num_res_blocks=1, downscale_factor=4, adapter_type="full_adapter_xl"
        )
        return with_parts_of(pipelines.sdxl(), name, adapter=adapter)
    adapter = T2IAdapter(channels=[16, 16, 32], num_res_blocks=1, downscale_factor=2)
    return with_parts_of(pipelines.sd15(), name, adapter=adapter)


def depth() -> Any:
    """The pipeline whose U-Net sees a map of depths beside the latents; the map is given."""
    pipe = pipelines.sd15(in_channels=5)
    return with_parts_of(pipe, "StableDiffusionDepth2ImgPipeline", depth_estimator=None)


def over_depth() -> dict[str, Any]:
    return calls.image() | {"depth_map": torch.linspace(0, 1, SIZE * SIZE).reshape(1, SIZE, SIZE)}


def variation() -> Any:
    """The pipeline that is told by an image alone; the unconditional branch gets zeros."""
    encoders = {"image_encoder": image_encoder(), "feature_extractor": image_processor()}
    return with_parts_of(pipelines.sd15(), "StableDiffusionImageVariationPipeline", **encoders)


def image_alone() -> dict[str, Any]:
    return {"image": pipelines.start_image(), "height": SIZE, "width": SIZE, "guidance_scale": 5.0}


def unclip() -> Any:
    """The pipeline to whose U-Net the embedding of an image is a class, with noise and how much of it there is."""
    pipe = pipelines.sd15(class_embed_type="projection", projection_class_embeddings_input_dim=2 * TEXT_WIDTH)
    return with_parts_of(
        pipe,
        "StableUnCLIPImg2ImgPipeline",
        scheduler=DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="v_prediction"),
        image_encoder=image_encoder(),
        feature_extractor=image_processor(),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=TEXT_WIDTH),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    )


def controlled_and_perturbed(name: str) -> Any:
    pipe = pipelines.sdxl() if "XL" in name else pipelines.sd15()
    awake(pipe.unet, "attn1.to_v", "attn1.to_out.0")
    return with_parts_of(controlled(pipe, name), name, pag_applied_layers=["down", "mid", "up"])


ADAPTERS = ("StableDiffusionAdapterPipeline", "StableDiffusionXLAdapterPipeline")
PERTURBED = ("StableDiffusionControlNetPAGPipeline", "StableDiffusionXLControlNetPAGPipeline")

SPECIMENS = (
    *(Specimen(name, partial(with_adapter, name), calls.control) for name in ADAPTERS),
    Specimen("StableDiffusionDepth2ImgPipeline", depth, over_depth),
    Specimen("StableDiffusionImageVariationPipeline", variation, image_alone),
    Specimen("StableUnCLIPImg2ImgPipeline", unclip, calls.control),
    *(
        Specimen(
            name,
            partial(controlled_and_perturbed, name),
            calls.with_arguments(calls.control, pag_scale=2.0),
            layout="branches",
        )
        for name in PERTURBED
    ),
)
