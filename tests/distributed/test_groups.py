"""Groups of ranks that share pictures: made where all are heard, given up by all alike, and agreed on before a call."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from hybridiff import ParallelConfig, parallelize
from hybridiff.sharding import choice, vae
from hybridiff.sharding.ranks import RankGroups
from support.failing import GROUP_TIMEOUT, QUICK, SOON, Planted
from support.jobs import Outcome, attempt, rank
from support.pipelines import build, generate
from support.ranks import run_ranks
from support.schedules import guidance_until
from zoo import ZOO, run

pytestmark = pytest.mark.distributed

NAME = "sdxl two levels"


def failing_once(owner: Any, function: str, faulty: int) -> None:
    """Have a function raise on one rank, at its next call."""
    original = getattr(owner, function)

    def fail(*_: Any, **__: Any) -> Any:
        setattr(owner, function, original)
        raise Planted(function)

    if rank() == faulty:
        setattr(owner, function, fail)


def check_story(outcomes: tuple[Outcome, ...], faulty: int, where: str, cause: str) -> None:
    """The rank at fault raises its own error, the others name rank, place and cause; nobody waits for a deadline."""
    for number, outcome in enumerate(outcomes):
        if number == faulty:
            assert (outcome.error, outcome.message) == ("Planted", cause)
        else:
            assert (outcome.error, outcome.message) == (
                "RankError",
                f"rank {faulty} failed in {where}: Planted: {cause}",
            )
        assert outcome.seconds < QUICK


BEHIND: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "postprocess": lambda pipe: (pipe.image_processor, "postprocess"),
    "forward": lambda pipe: (pipe.vae.post_quant_conv, "forward"),
}
"""Where a rank fails behind the last step."""


def fail_behind_the_last_step(place: str, least: int, config: dict[str, Any]) -> list[Outcome]:
    """How three calls end, in the second of which rank 0 fails; pictures are shared from so many pixels on."""
    vae.LEAST_PIXELS, pipe = least, build(NAME)
    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))

    def draw() -> Outcome:
        return attempt(lambda: generate(parallel, NAME, output_type="pt"))

    first = draw()
    failing_once(*BEHIND[place](pipe), faulty=0)
    return [first, draw(), draw()]


@pytest.mark.parametrize(
    ("ranks", "least", "config"),
    [
        pytest.param(2, 10**9, {"shards": 2}, id="shards"),
        pytest.param(2, 64, {}, id="decoded together"),
        pytest.param(4, 64, {"shards": 2}, id="two groups, and one of all"),
    ],
)
@pytest.mark.parametrize("place", BEHIND)
def test_a_failure_behind_the_last_step_costs_its_call_only(
    place: str, ranks: int, least: int, config: dict[str, Any]
) -> None:
    results = run_ranks(fail_behind_the_last_step, ranks, place, least, config)
    first, failed, again = zip(*results, strict=True)
    check_story(failed, 0, "the end of the run", place)
    for outcome in (*first, *again):
        assert outcome.error is None, outcome
        assert torch.equal(outcome.value, first[0].value)
        assert outcome.seconds < QUICK


def fail_before_groups_form(ranks_fail: str, config: dict[str, Any]) -> list[Outcome]:
    """How two calls end, in the first of which rank 1 fails directly before groups are made."""
    choice.LEAST_PIXELS, pipe = 1, build("sd3")
    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    changes = guidance_until("sd3", 1)
    end_guidance = changes["callback_on_step_end"]

    def fail_where_guidance_ends(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1 and rank() == 1:
            raise Planted("step")
        return end_guidance(pipe, step, timestep, tensors)  # type: ignore[no-any-return]

    if ranks_fail == "as the strategy begins":
        failing_once(pipe.scheduler, "step", faulty=1)
        failing = changes
    else:
        failing = changes | {"callback_on_step_end": fail_where_guidance_ends}
    failed = attempt(lambda: generate(parallel, "sd3", **failing))
    return [failed, attempt(lambda: generate(parallel, "sd3", **changes))]


@pytest.mark.parametrize(
    ("ranks", "ranks_fail", "config", "where"),
    [
        (2, "as the strategy begins", {"strategy": "hybrid", "shards": 2}, "the start of the run"),
        (2, "as guidance ends", {}, "warm-up, step 1"),
        (4, "as guidance ends", {"shards": 2}, "warm-up, step 1"),
    ],
)
def test_a_rank_that_fails_before_groups_form_is_heard(
    ranks: int, ranks_fail: str, config: dict[str, Any], where: str
) -> None:
    failed, again = zip(*run_ranks(fail_before_groups_form, ranks, ranks_fail, config), strict=True)
    check_story(failed, 1, where, "step")
    for outcome in again:
        assert outcome.error is None, outcome
        assert torch.equal(outcome.value, again[0].value)
        assert outcome.seconds < QUICK


def stay_away_from_a_group() -> Outcome:
    """How a call ends in which rank 1 comes too late where groups form."""
    make = RankGroups.make

    def come_late(groups: RankGroups, shards: int, device: torch.device) -> None:
        if rank() == 1:
            time.sleep(2 * SOON)
        make(groups, shards, device)

    patch = pytest.MonkeyPatch()
    patch.setattr(RankGroups, "make", come_late)
    parallel = parallelize(build("sd3"), ParallelConfig(shards=2, timeout=SOON))
    return attempt(lambda: generate(parallel, "sd3"))


def test_groups_that_do_not_form_are_told_with_rank_phase_and_step() -> None:
    message = run_ranks(stay_away_from_a_group, 2)[0].message
    assert message.startswith("rank 0 in warm-up, step 0, waiting to form groups: the other ranks did not form a group")
    assert "keys" not in message


def generate_hooked_on_rank_1(name: str, part: str, changes: dict[str, Any], config: dict[str, Any]) -> Outcome:
    """How a call ends, with the latents and the report, where a network has hooks of accelerate on rank 1 only."""
    choice.LEAST_PIXELS, pipe = 1, ZOO[name].build()
    if rank() == 1:
        for module in getattr(pipe, part).modules():
            add_hook_to_module(module, ModelHook())
    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=SOON, **config))
    return attempt(lambda: (run(ZOO[name], parallel, **changes), parallel.report))


@pytest.mark.parametrize(
    ("name", "part", "changes", "config", "shards"),
    [
        pytest.param("StableDiffusionPipeline", "unet", {"guidance_scale": 1.0}, {}, 1, id="a U-Net"),
        pytest.param("StableDiffusionControlNetPipeline", "controlnet", {}, {"shards": 2}, 2, id="a ControlNet"),
        pytest.param("StableDiffusion3Pipeline", "transformer", {}, {"shards": 2}, 2, id="one that is cut by tokens"),
    ],
)
def test_what_one_rank_cannot_cut_stays_whole_on_all(
    name: str, part: str, changes: dict[str, Any], config: dict[str, Any], shards: int
) -> None:
    outcomes = run_ranks(generate_hooked_on_rank_1, 2, name, part, changes, config)
    for outcome in outcomes:
        assert outcome.error is None, outcome
        latents, report = outcome.value
        assert torch.equal(latents, outcomes[0].value[0])
        assert (1 if report.partition is None else report.partition.shards) == shards
        assert any("have hooks of others" in note for note in report.notes) == (shards == 1)


def test_shards_are_refused_on_all_ranks_where_one_cannot_cut() -> None:
    for outcome in run_ranks(generate_hooked_on_rank_1, 2, "StableDiffusionPipeline", "unet", {}, {"shards": 2}):
        assert outcome.error == "UsageError", outcome
        assert "have hooks of others" in outcome.message
        assert "use shards=1" in outcome.message
