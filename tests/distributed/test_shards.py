"""Ranks that share the rows of one picture: their simulation bit for bit, one device to rounding; and how they fail."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.failing import GROUP_TIMEOUT, QUICK, SOON, Planted
from support.jobs import Outcome, attempt, generate_parallel, on_ranks, rank, told_alike
from support.oracles import relative_difference
from support.pipelines import build, denoiser_of, generate
from support.ranks import run_ranks

pytestmark = pytest.mark.distributed

CACHED = {"strategy": "hybrid", "full_steps": "0-1,3"}
UNGUIDED = {"guidance_scale": 1.0}
DISPLACED = {"displaced": True, "displaced_warm_up": 1}


@pytest.mark.parametrize(
    ("name", "ranks", "shards", "changes", "config"),
    [
        pytest.param("sdxl two levels", 4, 2, {}, {}, id="branches of two shards each"),
        pytest.param("sd3", 4, 2, {}, {}, id="the same of a transformer"),
        pytest.param("sd3.5", 3, 3, {}, {}, id="both branches by three"),
        pytest.param("sdxl two levels", 2, 2, UNGUIDED, {}, id="one branch"),
        pytest.param(
            "sdxl two levels", 4, 4, UNGUIDED, {"shards": 2}, id="one branch by all, though two were asked for"
        ),
        pytest.param("sd3", 6, 2, {"num_images_per_prompt": 2}, {}, id="three groups, four rows"),
        pytest.param("sdxl two levels", 4, 2, {"num_images_per_prompt": 3}, {}, id="three images"),
        pytest.param("sd3", 4, 2, {}, CACHED, id="cached steps"),
        pytest.param("sdxl two levels", 2, 2, {}, FEW, id="both branches by two, displaced"),
        pytest.param("sdxl two levels", 4, 2, {}, FEW, id="branches of two shards each, displaced"),
        pytest.param("sd3", 2, 2, {}, FEW, id="a transformer, displaced"),
    ],
)
def test_ranks_that_share_pictures(
    name: str, ranks: int, shards: int, changes: dict[str, Any], config: dict[str, Any]
) -> None:
    config = {"shards": shards, **config}
    generated = [runs[-1] for runs in run_ranks(on_ranks, ranks, name, changes, config)]
    simulated = generate_parallel(name, changes, simulate=True, devices=ranks, **config)[-1]
    alone = generate_parallel(name, changes, simulate=True, devices=1, **{**config, "shards": 1})[-1]
    for of_rank in generated:
        assert torch.equal(of_rank.latents, simulated.latents)
        assert told_alike(of_rank) == told_alike(simulated)
    assert relative_difference(simulated.latents, alone.latents) < 1e-4
    assert simulated.report["partition"]["shards"] == shards
    assert simulated.report["bytes_by_purpose"]["shards"] > 0


def run_until_rank_1_fails(way: str, timeout: float) -> tuple[Outcome, Outcome]:
    """How a call ends in which rank 1 leaves in the middle of the network at the third step, and the call after it."""
    pipe = build(NAME)
    parallel = parallelize(pipe, ParallelConfig(outputs="all", shards=2, timeout=timeout))
    came_by = 0

    def leave(*_: Any) -> None:
        nonlocal came_by
        came_by += 1
        if came_by == 3 and rank() == 1:
            if way == "raise":
                raise Planted("in the middle")
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}[way])

    denoiser_of(pipe).mid_block.register_forward_pre_hook(leave)
    return attempt(lambda: generate(parallel, NAME)), attempt(lambda: generate(parallel, NAME))


NAME = "sdxl two levels"


def test_a_rank_that_raises_in_the_middle_of_the_network() -> None:
    """Its peer, which waits for its rows, hears of it as soon as the ranks of the other branch do."""
    results = run_ranks(run_until_rank_1_fails, 4, "raise", GROUP_TIMEOUT)
    outcomes, again = zip(*results, strict=True)
    for number, outcome in enumerate(outcomes):
        if number == 1:
            assert (outcome.error, outcome.message) == ("Planted", "in the middle")
        else:
            assert outcome.error == "RankError"
            assert outcome.message == "rank 1 failed in warm-up, step 2: Planted: in the middle"
        assert outcome.seconds < QUICK
    assert all(outcome.error is None for outcome in again)
    assert all(torch.equal(outcome.value, again[0].value) for outcome in again)


@pytest.mark.parametrize("way", ["kill", "stop"])
def test_a_rank_that_dies_or_hangs_in_the_middle_of_the_network(way: str) -> None:
    outcomes = run_ranks(run_until_rank_1_fails, 4, way, SOON, may_die=[1])
    for outcome, again in (outcomes[number] for number in (0, 2, 3)):
        assert outcome.error == "RankError"
        assert "no answer from the other ranks within 5 s, or one died" in outcome.message
        assert "the process group broke" in again.message
        assert outcome.seconds < QUICK
