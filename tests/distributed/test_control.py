"""A ControlNet on two ranks: each evaluates its rows; an error in it is raised on both."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.failing import GROUP_TIMEOUT, QUICK, Planted
from support.jobs import Outcome, attempt, rank
from support.ranks import run_ranks
from zoo import ZOO, run

pytestmark = pytest.mark.distributed

NAME = "StableDiffusionControlNetPipeline"


def generate_and_count(config: dict[str, Any], dim: int = 0) -> tuple[torch.Tensor, list[int]]:
    """What a pipeline generates, and how long what each call of its ControlNet has in a dimension is."""
    pipe, rows = ZOO[NAME].build(), []
    pipe.controlnet.conv_in.register_forward_hook(lambda *given: rows.append(given[-1].shape[dim]))
    with parallelize(pipe, ParallelConfig(outputs="all", **config)) as parallel:
        return run(ZOO[NAME], parallel), rows


@pytest.mark.parametrize(
    ("config", "steps"), [({}, 3), ({"strategy": "hybrid", "full_steps": "0,3"}, 1)], ids=["cfg", "cached"]
)
def test_each_rank_evaluates_its_rows(config: dict[str, Any], steps: int) -> None:
    simulated, _ = generate_and_count(config | {"devices": 2, "simulate": True})
    for latents, rows in run_ranks(generate_and_count, 2, config):
        assert torch.equal(latents, simulated)
        assert rows == [2, 1] + [1] * steps


@pytest.mark.parametrize("displaced", [False, True])
def test_ranks_that_share_a_picture_evaluate_parts(displaced: bool) -> None:
    config = {"shards": 2} | ({"displaced": True, "displaced_warm_up": 0} if displaced else {})
    simulated, _ = generate_and_count(config | {"devices": 2, "simulate": True})
    for latents, rows in run_ranks(generate_and_count, 2, config, 2):
        assert torch.equal(latents, simulated)
        assert rows == [16, 16, 8, 8, 8], "the first step, which is tried in halves, and parts"


def run_with_fault(faulty: int, call: int, shards: int | None = None) -> tuple[Outcome, Outcome]:
    """How a run ends in which the ControlNet fails at an evaluation on one rank, and the run after it."""
    pipe = ZOO[NAME].build()
    left = [call] if rank() == faulty else []

    def fail(*_: Any) -> None:
        if left:
            left[0] -= 1
            if left[0] < 0:
                left.clear()
                raise Planted("ControlNet")

    pipe.controlnet.conv_in.register_forward_pre_hook(fail)
    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, shards=shards))
    outcome = attempt(lambda: run(ZOO[NAME], parallel))
    return outcome, attempt(lambda: run(ZOO[NAME], parallel))


@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize(
    ("call", "shards", "where"),
    [
        pytest.param(0, None, "the start of the run", id="first call"),
        pytest.param(3, None, "warm-up, step 2", id="deferred"),
        pytest.param(3, 2, "warm-up, step 2", id="its part"),
    ],
)
def test_an_error_is_raised_on_both_ranks(call: int, shards: int | None, where: str, faulty: int) -> None:
    results = run_ranks(run_with_fault, 2, faulty, call, shards)
    for number, (outcome, again) in enumerate(results):
        if number == faulty:
            assert (outcome.error, outcome.message) == ("Planted", "ControlNet")
        else:
            assert outcome.error == "RankError", outcome
            assert outcome.message == f"rank {faulty} failed in {where}: Planted: ControlNet"
        assert outcome.seconds < QUICK
        assert torch.equal(again.value, results[0][1].value)
