"""Rivals on real ranks: their simulation in one process, bit for bit; and a rank that fails is heard by all."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from support.failing import check_fault, run_with_fault
from support.jobs import Generated, generate_parallel, generated_on_ranks, told_alike
from support.ranks import run_ranks
from support.schedules import guidance_until

pytestmark = pytest.mark.distributed

TEN = {"num_inference_steps": 10}


def rival(strategy: str, **settings: Any) -> dict[str, Any]:
    return {"strategy": strategy, "settings": settings}


@pytest.mark.parametrize(
    ("name", "ranks", "config", "changes"),
    [
        ("sd3", 2, rival("asyncdiff"), {}),
        ("sdxl", 2, rival("asyncdiff", warm_up=3), {"num_images_per_prompt": 2}),
        ("sd15", 3, rival("asyncdiff", stride=2, warm_up=3, time_shift=True), {}),
        ("sd15", 4, rival("asyncdiff", warm_up=2), {}),
        ("sd3", 2, rival("parastep", warm_up=3), {}),
        ("sdxl", 3, rival("parastep", warm_up=2, reuse="latest"), {"num_images_per_prompt": 2}),
        ("sdxl inpaint", 2, rival("parastep", warm_up=2), {}),
        ("sd3", 2, rival("cached_cfg", threshold=0.3), {}),
        ("sd15", 2, rival("cached_cfg", cache="taylorseer"), {}),
        ("sdxl two levels", 2, rival("sequence"), {}),
        ("sd3", 4, rival("distrifusion", warm_up=2), {}),
        ("sdxl two levels", 2, rival("distrifusion", warm_up=2), {}),
        ("sd3", 2, rival("pipefusion"), {}),
        ("sd3.5", 4, rival("pipefusion", patches=6, warm_up=2), {"num_images_per_prompt": 2}),
    ],
)
def test_ranks_equal_their_simulation(name: str, ranks: int, config: dict[str, Any], changes: dict[str, Any]) -> None:
    generated = generated_on_ranks(ranks, name, TEN | changes, config)
    assert_same(generated, generate_parallel(name, TEN | changes, simulate=True, devices=ranks, **config)[0])


@pytest.mark.parametrize(
    ("name", "ranks", "config"),
    [("sd3", 3, rival("asyncdiff", stride=2, warm_up=2)), ("sd15", 2, rival("parastep", warm_up=2))],
)
def test_guidance_that_ends(name: str, ranks: int, config: dict[str, Any]) -> None:
    simulated = until_guidance_ends(name, config | {"simulate": True, "devices": ranks})
    for generated in run_ranks(until_guidance_ends, ranks, name, config):
        assert_same(generated, simulated)


def until_guidance_ends(name: str, config: dict[str, Any]) -> Generated:
    return generate_parallel(name, TEN | guidance_until(name, 5), **config)[0]


def assert_same(generated: Generated, simulated: Generated) -> None:
    assert torch.equal(generated.latents, simulated.latents)
    assert told_alike(generated) == told_alike(simulated)
    assert generated.report["bytes_by_purpose"] == simulated.report["bytes_by_purpose"]


@pytest.mark.parametrize(
    ("config", "ranks", "faulty", "place", "step", "where"),
    [
        pytest.param(rival("asyncdiff"), 2, 0, "embedding", 4, "parallel, step 4", id="in the first stage"),
        pytest.param(rival("asyncdiff"), 2, 1, "outer", 4, "parallel, step 4", id="in the last stage"),
        pytest.param(rival("asyncdiff", warm_up=3), 2, 1, "embedding", 2, "warm-up, step 2", id="in the warm-up"),
        pytest.param(rival("asyncdiff"), 3, 1, "callback", 4, "parallel, step 4", id="between steps"),
        pytest.param(
            rival("asyncdiff", stride=2), 3, 2, "callback", 3, "parallel, step 3", id="before a step without messages"
        ),
        pytest.param(
            rival("asyncdiff", stride=2), 3, 0, "callback", 4, "parallel, step 4", id="after a step without messages"
        ),
        pytest.param(rival("asyncdiff"), 2, 0, "callback", 9, "parallel, step 9", id="at the end"),
        pytest.param(rival("parastep"), 2, 1, "embedding", 7, "parallel, step 7", id="in a step ahead"),
        pytest.param(rival("parastep"), 3, 0, "callback", 5, "parallel, step 5", id="within a cycle"),
        pytest.param(rival("pipefusion"), 3, 1, "embedding", 4, "parallel, step 4", id="in a patch"),
        pytest.param(rival("pipefusion"), 2, 1, "outer", 9, "parallel, step 9", id="in the last stage of a patch"),
    ],
)
def test_a_rank_that_fails_is_heard_by_all(
    config: dict[str, Any], ranks: int, faulty: int, place: str, step: int, where: str
) -> None:
    results = run_ranks(fault, ranks, faulty, place, step, config)
    check_fault(
        results, faulty, place, where, generate_parallel("sd3", TEN, simulate=True, devices=ranks, **config)[0].latents
    )


def fault(faulty: int, place: str, step: int, config: dict[str, Any]) -> Any:
    return run_with_fault("sd3", faulty, place, step, config, **TEN)
