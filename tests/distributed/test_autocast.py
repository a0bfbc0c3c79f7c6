"""Under autocast networks answer in another dtype than their sample's, which ranks without rows never see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.jobs import Generated, generate_parallel
from support.ranks import run_ranks
from support.schedules import capped, guidance_until

pytestmark = pytest.mark.distributed

SKIP_LAYERS = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.9}
CACHED = {"strategy": "hybrid", "full_steps": "0-1,3", "step_kind": "cached"}


@pytest.mark.parametrize(
    ("ranks", "name", "changes", "config"),
    [
        pytest.param(4, "sd3", {}, {}, id="two ranks idle"),
        pytest.param(4, "sdxl two levels", {}, {}, id="two ranks idle, U-Net"),
        pytest.param(4, "sd3", {}, {"strategy": "serial"}, id="serial"),
        pytest.param(4, "sd3", {}, CACHED, id="two ranks idle, cached steps"),
        pytest.param(4, "sd3", {"num_images_per_prompt": 2} | SKIP_LAYERS, {}, id="idle in extra evaluations only"),
        pytest.param(4, "sd15", {"num_images_per_prompt": 3, "end": 1}, {}, id="idle once guidance has ended"),
        pytest.param(4, "sd3", {"num_images_per_prompt": 3, "guidance_scale": 1.0}, {}, id="one rank idle, unguided"),
        pytest.param(2, "sd3", {"num_inference_steps": 6}, capped(6, 1, 2, split_point=1), id="pipelined steps"),
    ],
)
def test_ranks_agree_with_each_other_and_with_one_process(
    ranks: int, name: str, changes: dict[str, Any], config: dict[str, Any]
) -> None:
    generated = run_ranks(generate_under_autocast, ranks, name, changes, config)
    simulated = generate_under_autocast(name, changes, config | {"simulate": True, "devices": ranks})
    assert {other.latents.dtype for other in generated} == {simulated.latents.dtype}
    assert all(torch.equal(other.latents, simulated.latents) for other in generated)


def generate_under_autocast(name: str, changes: dict[str, Any], config: dict[str, Any]) -> Generated:
    ending = guidance_until(name, changes["end"]) if "end" in changes else {}
    changes = {argument: value for argument, value in changes.items() if argument != "end"}
    with torch.autocast("cpu", torch.bfloat16):
        return generate_parallel(name, changes | ending, **config)[0]


def test_autocast_changes_what_networks_answer() -> None:
    """Otherwise the comparison above would say nothing of dtypes."""
    latents = generate_parallel("sd3", {}, simulate=True)[0].latents
    assert not torch.equal(generate_under_autocast("sd3", {}, {"simulate": True}).latents, latents)
