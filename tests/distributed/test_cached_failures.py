"""Contract 6 around cached steps, which have no messages: whatever happens on one rank shows with the next message."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.calibrations import ENTRY, calibration_file
from support.failing import GROUP_TIMEOUT, QUICK, Planted, check_fault, run_with_fault
from support.jobs import Generated, Outcome, attempt, generate_parallel, rank
from support.pipelines import build, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped, guidance_until, split_at

pytestmark = pytest.mark.distributed

STEPS = {"num_inference_steps": 10}
TWO = {"num_images_per_prompt": 2}
CACHED = {"strategy": "hybrid", "full_steps": "0-2,6,9", "step_kind": "cached"}
"""Two groups of cached steps: 3 to 5, 7 and 8."""
OPEN = CACHED | {"full_steps": "0-2,6"}
"""The second group lasts to the end."""
REUSE = CACHED | {"step_kind": "reuse", "calibration": split_at("reuse", 1)}


def failing(
    ranks: int, config: dict[str, Any], faulty: int, place: str, step: int
) -> tuple[list[tuple[Outcome, Outcome]], torch.Tensor]:
    """How a run ends in which one rank fails, and what it should have generated."""
    changes = STEPS | (TWO if ranks == 4 else {})
    expected = generate_parallel("sd3", changes, simulate=True, devices=ranks, **config)[0].latents
    return run_ranks(fail_in_a_run, ranks, config, faulty, place, step, changes), expected


def fail_in_a_run(
    config: dict[str, Any], faulty: int, place: str, step: int, changes: dict[str, Any]
) -> tuple[Outcome, Outcome]:
    return run_with_fault("sd3", faulty, place, step, config, **changes)


@pytest.mark.parametrize(
    ("ranks", "config", "faulty", "place", "step"),
    [
        pytest.param(2, CACHED, 0, "callback", 2, id="before the first cached step"),
        pytest.param(2, CACHED, 1, "callback", 3, id="in a cached step"),
        pytest.param(2, CACHED, 0, "scheduler", 4, id="scheduler in a cached step"),
        pytest.param(2, CACHED, 1, "callback", 5, id="in the last of a group"),
        pytest.param(2, CACHED, 1, "embedding", 6, id="network in the full step after it"),
        pytest.param(2, CACHED, 0, "callback", 9, id="in the last step"),
        pytest.param(2, OPEN, 1, "callback", 7, id="no full step to come"),
        pytest.param(2, OPEN, 0, "scheduler", 9, id="in the last step, cached"),
        pytest.param(4, CACHED, 2, "callback", 4, id="one of four"),
        pytest.param(4, REUSE, 3, "outer", 4, id="one of four, network in a reuse step"),
        pytest.param(2, REUSE, 0, "callback", 3, id="callback in a reuse step"),
        pytest.param(2, REUSE, 1, "embedding", 5, id="network in the last reuse step of a group"),
        pytest.param(2, REUSE, 0, "scheduler", 8, id="scheduler in a reuse step"),
        pytest.param(2, REUSE, 1, "outer", 6, id="network in a full step after reuse steps"),
    ],
)
def test_an_error_on_one_rank(ranks: int, config: dict[str, Any], faulty: int, place: str, step: int) -> None:
    results, expected = failing(ranks, config, faulty, place, step)
    check_fault(results, faulty, place, f"{'warm-up' if step <= 2 else place_of(config, step)}, step {step}", expected)


def place_of(config: dict[str, Any], step: int) -> str:
    """The phase of a step after tau1: the phase lasts to the last step that is not full."""
    return "connect" if step > (9 if config is OPEN else 8) else "parallel"


def test_errors_on_both_ranks_in_different_cached_steps() -> None:
    for number, outcome in enumerate(run_ranks(run_with_two_faults, 2)):
        assert (outcome.error, outcome.message) == ("Planted", f"rank {number}")
        assert outcome.seconds < QUICK


def run_with_two_faults() -> Outcome:
    def fail(_: Any) -> None:
        raise Planted(f"rank {rank()}")

    parallel = parallelize(build("sd3"), ParallelConfig(timeout=GROUP_TIMEOUT, **CACHED))
    return attempt(lambda: generate(parallel, "sd3", **STEPS, callback_on_step_end=callback_at(3 + rank(), fail)))


@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize(
    ("config", "step"),
    [
        pytest.param(CACHED, 4, id="cached"),
        pytest.param(REUSE, 4, id="reuse"),
        pytest.param(capped(10, 3, 4, split_point=1), 5, id="pipelined"),
    ],
)
def test_an_error_in_the_step_whose_callback_ends_guidance(config: dict[str, Any], step: int, faulty: int) -> None:
    """The rank that fails never learns that there are no more steps but full ones."""
    for number, outcome in enumerate(run_ranks(fail_where_guidance_ends, 2, config, step, faulty)):
        if number == faulty:
            assert (outcome.error, outcome.message) == ("Planted", "callback")
        else:
            assert outcome.error == "RankError"
            assert outcome.message == f"rank {faulty} failed in parallel, step {step}: Planted: callback"
        assert outcome.seconds < QUICK


def fail_where_guidance_ends(config: dict[str, Any], last: int, faulty: int) -> Outcome:
    ending = guidance_until("sd3", last)

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == last and rank() == faulty:
            raise Planted("callback")
        return ending["callback_on_step_end"](pipe, step, timestep, tensors)  # type: ignore[no-any-return]

    parallel = parallelize(build("sd3"), ParallelConfig(timeout=GROUP_TIMEOUT, **config))
    return attempt(lambda: generate(parallel, "sd3", **STEPS, **(ending | {"callback_on_step_end": callback})))


@pytest.mark.parametrize(("config", "last"), [(CACHED, 4), (REUSE, 4)], ids=["cached", "reuse"])
def test_guidance_that_ends_on_all_ranks(config: dict[str, Any], last: int) -> None:
    simulated = generate_until_guidance_ends(config, last, True)
    for generated in run_ranks(generate_until_guidance_ends, 2, config, last, False):
        assert torch.equal(generated.latents, simulated.latents)
        assert generated.report["tau2"] == last
        assert [step["kind"] for step in generated.report["steps"]][last + 1 :] == ["full"] * (9 - last)


def generate_until_guidance_ends(config: dict[str, Any], last: int, simulate: bool) -> Generated:
    return generate_parallel("sd3", STEPS | guidance_until("sd3", last), simulate=simulate, **config)[0]


@pytest.mark.parametrize(
    ("config", "leaving", "step"),
    [
        pytest.param(CACHED, 0, 3, id="rank 0 in a cached step"),
        pytest.param(CACHED, 1, 5, id="rank 1 in the last of a group"),
        pytest.param(REUSE, 1, 4, id="rank 1 in a reuse step"),
    ],
)
def test_ranks_that_part_ways(config: dict[str, Any], leaving: int, step: int) -> None:
    """One rank leaves the loop without a word of it."""
    for outcome in run_ranks(run_with_one_leaving, 2, config, leaving, step):
        assert outcome.error == "RankError"
        assert f"rank {leaving} left the denoising loop" in outcome.message
        assert f"rank {1 - leaving} goes on" in outcome.message
        assert outcome.seconds < QUICK


def run_with_one_leaving(config: dict[str, Any], leaving: int, step: int) -> Outcome:
    def leave(pipe: Any) -> None:
        if rank() == leaving:
            pipe.__class__ = type("Interrupted", (type(pipe),), {"interrupt": property(lambda self: True)})

    parallel = parallelize(build("sd3"), ParallelConfig(timeout=GROUP_TIMEOUT, **config))
    return attempt(lambda: generate(parallel, "sd3", **STEPS, callback_on_step_end=callback_at(step, leave)))


def test_a_rank_that_dies_in_a_cached_step() -> None:
    survivor, dead = run_ranks(run_until_death, 2, may_die=[1])
    assert dead is None
    assert survivor.error == "RankError"
    assert survivor.message.startswith("rank 0 in parallel, step 6, waiting to gather the predictions: ")
    assert survivor.seconds < QUICK


def run_until_death() -> Outcome:
    def die(_: Any) -> None:
        if rank() == 1:
            os._exit(3)

    parallel = parallelize(build("sd3"), ParallelConfig(timeout=GROUP_TIMEOUT, **CACHED))
    return attempt(lambda: generate(parallel, "sd3", **STEPS, callback_on_step_end=callback_at(4, die)))


@pytest.mark.parametrize("asking", [0, 1])
@pytest.mark.parametrize(
    ("config", "last", "steps"),
    [
        pytest.param(CACHED, 3, 7, id="in a cached step: all hear of it in the next full one"),
        pytest.param(CACHED, 5, 7, id="in the last of a group"),
        pytest.param(OPEN, 7, 10, id="no full step to come"),
        pytest.param(REUSE, 3, 6, id="in a reuse step: told in the next one, read in the one after it"),
        pytest.param(REUSE, 5, 7, id="before a full step, which is read at once"),
    ],
)
def test_an_interrupt_on_one_rank_stops_all_after_the_same_step(
    config: dict[str, Any], last: int, steps: int, asking: int
) -> None:
    kept: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        kept.append(tensors["latents"].clone())
        return tensors

    generate_parallel("sd3", STEPS | {"callback_on_step_end": keep}, simulate=True, **config)
    for interrupted, count, whole in run_ranks(run_with_interrupt, 2, config, last, asking):
        assert count == steps
        assert torch.equal(interrupted, kept[steps - 1])
        assert torch.equal(whole, kept[9])


def run_with_interrupt(config: dict[str, Any], last: int, asking: int) -> Any:
    def interrupt(pipe: Any) -> None:
        pipe._interrupt = pipe._interrupt or rank() == asking

    parallel = parallelize(build("sd3"), ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    interrupted = generate(parallel, "sd3", **STEPS, callback_on_step_end=callback_at(last, interrupt))
    assert parallel.report is not None
    return interrupted, len(parallel.report.steps), generate(parallel, "sd3", **STEPS)


def test_ranks_with_different_calibrations_are_refused(tmp_path: Path) -> None:
    """The same file name, and on each rank's machine another file."""
    for outcome in run_ranks(run_with_own_calibration, 2, str(tmp_path)):
        assert outcome.error == "UsageError"
        assert outcome.message.startswith("ranks disagree on settings of the model: rank 0 has ")
        assert "guidance_scale=0.5" in outcome.message
        assert outcome.message.endswith("make the same call on every rank")


def run_with_own_calibration(folder: str) -> Outcome:
    home = Path(folder) / str(rank())
    home.mkdir()
    calibration_file(home, replace(ENTRY, guidance_scale=0.25 * (1 + rank())))
    os.environ["HOME"] = str(home)
    config = ParallelConfig(strategy="hybrid", calibration="~/calibration.json")
    return attempt(lambda: parallelize(build("sd3"), config))
