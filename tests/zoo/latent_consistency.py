"""Latent consistency models: the scale of guidance is an input of the network, one branch is all there is."""

from __future__ import annotations

from functools import partial
from typing import Any

from diffusers import LCMScheduler

from support import pipelines
from zoo import calls
from zoo.networks import with_parts_of
from zoo.specimen import Specimen


def consistency(name: str) -> Any:
    pipe = pipelines.sd15(time_cond_proj_dim=32)
    return with_parts_of(pipe, name, scheduler=LCMScheduler.from_config(pipe.scheduler.config))


def text() -> dict[str, Any]:
    return {name: value for name, value in calls.text().items() if name != "negative_prompt"}


SPECIMENS = (
    Specimen(
        "LatentConsistencyModelPipeline", partial(consistency, "LatentConsistencyModelPipeline"), text, layout="single"
    ),
)
