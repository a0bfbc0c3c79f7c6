"""AnimateDiff: Stable Diffusion 1.5 with layers of motion; text, film, ControlNet, perturbed attention."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers import MotionAdapter, UNetMotionModel

from support import pipelines
from support.pipelines import quiet
from zoo import calls
from zoo.films import film
from zoo.networks import awake, copied_controlnet
from zoo.specimen import Specimen

FRAMES = 4


def animatediff(name: str) -> Any:
    base = pipelines.sd15()
    adapter = MotionAdapter(
        block_out_channels=(16, 16, 32),
        motion_layers_per_block=2,
        motion_mid_block_layers_per_block=1,
        motion_norm_num_groups=8,
        motion_num_attention_heads=2,
        motion_max_seq_length=8,
    )
    unet = awake(UNetMotionModel.from_unet2d(base.unet, awake(adapter)), "attn1.to_v", "attn1.to_out.0", factor=4.0)
    parts = {part: base.components[part] for part in ("vae", "tokenizer", "text_encoder", "scheduler")}
    settings = {"pag_applied_layers": ["down", "mid", "up"]} if "PAG" in name else {}
    controlnet = {"controlnet": copied_controlnet(base)} if "ControlNet" in name else {}
    return quiet(getattr(diffusers, name)(unet=unet, motion_adapter=adapter, **parts, **settings, **controlnet))


def text() -> dict[str, Any]:
    return calls.text() | {"num_frames": FRAMES}


def controlled() -> dict[str, Any]:
    return text() | {"conditioning_frames": film(FRAMES)}


def from_film() -> dict[str, Any]:
    return calls.text() | {"video": film(FRAMES), "strength": 0.8, "enforce_inference_steps": True}


def specimen(name: str, call: Any, **settings: Any) -> Specimen:
    return Specimen(name, lambda: animatediff(name), call, output="frames", **settings)


SPECIMENS = (
    specimen("AnimateDiffPipeline", text),
    specimen("AnimateDiffVideoToVideoPipeline", from_film),
    specimen("AnimateDiffControlNetPipeline", controlled),
    specimen("AnimateDiffPAGPipeline", calls.with_arguments(text, pag_scale=2.0), layout="branches"),
)
