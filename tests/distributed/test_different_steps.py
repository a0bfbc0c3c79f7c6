"""Ranks that are not at the same step, or share it in different ways: an error on every rank, never two images."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.failing import GROUP_TIMEOUT, QUICK, SOON
from support.jobs import Outcome, attempt, rank
from support.pipelines import build, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped, guidance_until

pytestmark = pytest.mark.distributed

STEPS = {"num_inference_steps": 10, "num_images_per_prompt": 2}
CACHED = {"strategy": "hybrid", "full_steps": "0-2,4,7,9", "step_kind": "cached"}
REUSE = CACHED | {"step_kind": "reuse"}


@pytest.mark.parametrize(
    ("ranks", "config", "faulty", "step", "places"),
    [
        pytest.param(2, CACHED, 1, 7, "7 (full), 9 (full)", id="cached here, full there"),
        pytest.param(2, CACHED, 0, 7, "9 (full), 7 (full)", id="cached by the leader"),
        pytest.param(4, CACHED, 2, 7, "7 (full), 7 (full), 9 (full), 7 (full)", id="one of four"),
        pytest.param(2, REUSE, 1, 7, "7 (full), 7 (reuse)", id="reuse here, full there"),
        pytest.param(2, REUSE, 0, 9, "9 (reuse), 9 (full)", id="in the last step"),
        pytest.param(4, REUSE, 3, 4, "4 (full), 4 (full), 4 (full), 4 (reuse)", id="reuse, one of four"),
    ],
)
def test_all_ranks_say_who_is_where(ranks: int, config: dict[str, Any], faulty: int, step: int, places: str) -> None:
    results = run_ranks(run_with_other_policy, ranks, config, faulty, step)
    told = [f"rank {number} at step {place}" for number, place in enumerate(places.split(", "))]
    for outcome, again in results:
        assert outcome.error == "RankError", outcome
        assert outcome.message == f"ranks are at different steps: {', '.join(told)}; make the same call on every rank"
        assert outcome.seconds < QUICK
        assert torch.equal(again.value, results[0][1].value)


@pytest.mark.parametrize(
    ("config", "kind"),
    [({}, "full"), ({"strategy": "serial"}, "full"), (CACHED, "full"), (capped(10, 3, 4, split_point=1), "pipelined")],
    ids=["cfg", "serial", "cached", "published"],
)
@pytest.mark.parametrize("faulty", [0, 1])
def test_guidance_that_ends_on_one_rank_alone(config: dict[str, Any], kind: str, faulty: int) -> None:
    told = [f"rank {number} at step 7 ({kind}{', guidance off' if number == faulty else ''})" for number in range(2)]
    for outcome in run_ranks(run_without_guidance_on_one_rank, 2, config, faulty):
        assert outcome.error == "RankError", outcome
        assert outcome.message == f"ranks are at different steps: {', '.join(told)}; make the same call on every rank"
        assert outcome.seconds < QUICK


def run_without_guidance_on_one_rank(config: dict[str, Any], faulty: int) -> Outcome:
    parallel = parallelize(build("sd3"), ParallelConfig(timeout=GROUP_TIMEOUT, **config))
    own = guidance_until("sd3", 6) if rank() == faulty else {}
    return attempt(lambda: generate(parallel, "sd3", num_inference_steps=10, **own))


@pytest.mark.parametrize("config", [{}, {"strategy": "serial"}, CACHED], ids=["cfg", "serial", "cached"])
@pytest.mark.parametrize("change", ["latents on one rank", "noise of each rank's own", "guidance on one rank"])
def test_a_callback_that_does_not_do_the_same_everywhere(config: dict[str, Any], change: str) -> None:
    for outcome, again in run_ranks(run_with_other_callback, 2, config, change):
        assert outcome.error == "RankError", outcome
        other, remedy = "rank 1 was given another sample than rank 0", "a callback must do the same on every rank"
        assert re.fullmatch(rf"{other} in (warm-up|parallel), step [234]: {remedy}", outcome.message), outcome
        assert outcome.seconds < QUICK
        assert again.error is None


def run_with_other_callback(config: dict[str, Any], change: str) -> tuple[Outcome, Outcome]:
    """How a run ends in which a callback does something else on each rank, and the next one without."""
    noise = np.random.default_rng(rank())

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        latents = tensors["latents"]
        if step == 1 and change == "noise of each rank's own":
            return {"latents": latents + torch.from_numpy(noise.standard_normal(latents.shape)).to(latents)}
        if step == 1 and rank() == 1:
            if change == "latents on one rank":
                return {"latents": latents.roll(4, -1)}
            pipe._guidance_scale = 9.0
        return {}

    parallel = parallelize(build("sd3"), ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    return (
        attempt(lambda: generate(parallel, "sd3", **STEPS, callback_on_step_end=callback)),
        attempt(lambda: generate(parallel, "sd3", **STEPS)),
    )


def test_a_cached_last_step_on_one_rank_alone() -> None:
    """It has left the loop when the other one still waits for a prediction."""
    for outcome, again in run_ranks(run_with_other_policy, 2, CACHED, 1, 9):
        assert outcome.error == "RankError"
        assert "rank 0 goes on; rank 1 left the denoising loop in " in outcome.message
        assert outcome.seconds < QUICK
        assert again.error is None


def test_messages_of_different_forms_end_at_the_deadline() -> None:
    """A swap on one rank and a gather on the other never meet; both say what they waited for."""
    first, second = run_ranks(run_with_other_phase, 2)
    assert (first.error, second.error) == ("RankError", "RankError")
    assert first.message.startswith("rank 0 in parallel, step 4, waiting to swap the stages' boundaries: ")
    assert second.message.startswith("rank 1 in warm-up, step 4, waiting to gather the predictions: ")
    assert max(first.seconds, second.seconds) < QUICK


def run_with_other_policy(config: dict[str, Any], faulty: int, step: int) -> tuple[Outcome, Outcome]:
    """How a run ends in which one rank does not compute a step in full, and the next one, in which it does."""
    from hybridiff.schedule.fixed import FixedPolicy

    kind = FixedPolicy.kind
    if rank() == faulty:
        FixedPolicy.kind = lambda policy, which: policy.step_kind if which == step else kind(policy, which)  # type: ignore[method-assign]
    parallel = parallelize(build("sd3"), ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    outcome = attempt(lambda: generate(parallel, "sd3", **STEPS))
    FixedPolicy.kind = kind  # type: ignore[method-assign]
    return outcome, attempt(lambda: generate(parallel, "sd3", **STEPS))


def run_with_other_phase() -> Outcome:
    """Rank 1 forgets that the parallel phase has begun."""
    from hybridiff.schedule.kinds import Phase, StepKind
    from hybridiff.strategies.published.rule import PublishedPolicy

    def forget(_: Any) -> None:
        if rank() == 1:
            PublishedPolicy.phase = lambda policy, step: Phase.WARM_UP  # type: ignore[method-assign]
            PublishedPolicy.kind = lambda policy, step: StepKind.FULL  # type: ignore[method-assign]

    parallel = parallelize(build("sd3"), ParallelConfig(timeout=SOON, **capped(10, 3, 4, split_point=1)))
    return attempt(
        lambda: generate(parallel, "sd3", num_inference_steps=10, callback_on_step_end=callback_at(3, forget))
    )
