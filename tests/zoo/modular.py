"""Modular pipelines: the same networks as elsewhere, called once a condition, as a guider asks for it."""

from __future__ import annotations

from typing import Any

from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    AutoGuidance,
    BaseGuidance,
    ClassifierFreeGuidance,
    ClassifierFreeZeroStarGuidance,
    SkipLayerGuidance,
)
from diffusers.hooks import LayerSkipConfig
from diffusers.modular_pipelines import StableDiffusion3AutoBlocks, StableDiffusionXLAutoBlocks, WanBlocks

from support.pipelines import SIZE, TEXT_TOKENS, sd3, sdxl, start_image
from zoo.specimen import Specimen
from zoo.wan import FRAMES, wan, wan_call


def modular(blocks: Any, stock: Any, guider: BaseGuidance) -> Any:
    """The modular pipeline of these blocks, with the parts of a stock pipeline."""
    _silence(blocks)
    pipe = blocks.init_pipeline()
    wanted = set(pipe.null_component_names) | set(pipe.component_names)
    parts = {name: part for name, part in stock.components.items() if name in wanted and part is not None}
    pipe.update_components(guider=guider, **parts)
    return pipe


def _silence(block: Any) -> None:
    if hasattr(block, "set_progress_bar_config"):
        block.set_progress_bar_config(disable=True)
    for part in (block.sub_blocks or {}).values():
        _silence(part)


def modular_sdxl(guider: BaseGuidance) -> Any:
    return modular(StableDiffusionXLAutoBlocks(), sdxl(), guider)


def modular_sd3(guider: BaseGuidance) -> Any:
    return modular(StableDiffusion3AutoBlocks(), sd3(), guider)


def modular_wan(guider: BaseGuidance) -> Any:
    blocks = WanBlocks()
    blocks.sub_blocks.pop("text_encoder")  # the text comes in as embeddings
    return modular(blocks, wan("WanPipeline"), guider)


def _call(**others: Any) -> dict[str, Any]:
    return {"prompt": "a red ring", "negative_prompt": "blurred", "height": SIZE, "width": SIZE} | others


def _of_video() -> dict[str, Any]:
    return {name: value for name, value in wan_call(num_frames=FRAMES).items() if name != "guidance_scale"}


def _skipping(layer: int) -> SkipLayerGuidance:
    """A third call, conditional, while a hook leaves that layer out."""
    return SkipLayerGuidance(
        guidance_scale=5.0,
        skip_layer_config=LayerSkipConfig(indices=[layer], fqn="blocks"),
        skip_layer_guidance_start=0.0,
        skip_layer_guidance_stop=1.0,
    )


def _without(layer: int) -> AutoGuidance:
    """Two calls as in classifier-free guidance, the second while a hook leaves that layer out."""
    return AutoGuidance(
        guidance_scale=5.0,
        auto_guidance_config=LayerSkipConfig(indices=[layer], fqn="blocks"),
        start=0.0,
        stop=1.0,
    )


SPECIMENS = (
    Specimen(
        "StableDiffusionXLModularPipeline",
        lambda: modular_sdxl(ClassifierFreeGuidance(guidance_scale=5.0)),
        _call,
        "guider",
        "latents",
    ),
    Specimen(
        "StableDiffusionXLModularPipeline:img2img",
        lambda: modular_sdxl(ClassifierFreeGuidance(guidance_scale=5.0)),
        lambda: _call(image=start_image(), strength=0.8),
        "guider",
        "latents",
    ),
    Specimen(
        "StableDiffusionXLModularPipeline:late",
        lambda: modular_sdxl(ClassifierFreeGuidance(guidance_scale=5.0, start=0.25)),
        _call,
        "guider",
        "latents",
        steps=8,
    ),
    Specimen(
        "StableDiffusion3ModularPipeline:projected",
        lambda: modular_sd3(AdaptiveProjectedGuidance(guidance_scale=5.0, adaptive_projected_guidance_momentum=-0.5)),
        lambda: _call(max_sequence_length=TEXT_TOKENS),
        "guider",
        "latents",
    ),
    Specimen(
        "WanModularPipeline:zero-star",
        lambda: modular_wan(ClassifierFreeZeroStarGuidance(guidance_scale=5.0)),
        _of_video,
        "guider",
        "latents",
        latent=False,
    ),
    Specimen(
        "WanModularPipeline:skip-layer",
        lambda: modular_wan(_skipping(layer=1)),
        _of_video,
        "guider",
        "latents",
        latent=False,
    ),
    Specimen(
        "WanModularPipeline:auto",
        lambda: modular_wan(_without(layer=1)),
        _of_video,
        "guider",
        "latents",
        latent=False,
    ),
)
