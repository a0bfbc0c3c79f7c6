"""What looks at the whole picture is not cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import UsageError
from hybridiff.sharding.network import shard_network
from hybridiff.sharding.whole import needs_whole_picture
from support.oracles import relative_difference
from support.pipelines import build, denoiser_of
from support.simulated import simulate
from zoo import ZOO, run


@pytest.mark.parametrize(
    ("arguments", "whole"),
    [
        ({}, False),
        ({"cross_attention_kwargs": None, "joint_attention_kwargs": {"scale": 0.5}}, False),
        ({"cross_attention_kwargs": {"ip_adapter_masks": [torch.ones(1, 1, 8, 8)]}}, True),
        ({"cross_attention_kwargs": {"gligen": {}}}, True),
        ({"joint_attention_kwargs": {"ip_adapter_image_embeds": []}}, True),
    ],
)
def test_arguments_for_whole_pictures(arguments: dict[str, Any], whole: bool) -> None:
    for name in ("sdxl two levels", "sd3"):
        network = denoiser_of(build(name))
        sharded, first = shard_network(network), "sample" if name != "sd3" else "hidden_states"
        assert sharded is not None
        assert needs_whole_picture(network, arguments) is whole
        assert (sharded.most_parts({first: torch.zeros(1, 4, 16, 16)} | arguments) == 1) is whole


def test_filters_of_whole_pictures() -> None:
    specimen, pipe = ZOO["StableDiffusionPipeline"], ZOO["StableDiffusionPipeline"].build()
    with simulate(pipe, shards=2) as parallel:
        plain = run(specimen, parallel)
        pipe.enable_freeu(s1=0.2, s2=0.2, b1=1.4, b2=1.6)
        with pytest.raises(UsageError, match="FreeU look at the whole image: ranks cannot share it; use shards=1"):
            run(specimen, parallel)
        pipe.disable_freeu()
        assert relative_difference(run(specimen, parallel), plain) < 1e-5
