"""Contract 6: whatever happens on one rank, every rank ends, quickly, with a clear error.

The others read a step late how a rank fares, and name the step in which it failed.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from hybridiff import ParallelConfig, parallelize
from support.failing import GROUP_TIMEOUT, QUICK, Planted
from support.jobs import Outcome, attempt, rank
from support.oracles import generated_one_part_after_another
from support.pipelines import build, call_arguments, denoiser_of, generate
from support.ranks import run_ranks
from support.schedules import capped

pytestmark = pytest.mark.distributed

NAME = "sdxl two levels"


def failing(function: Callable[..., Any], call: int, where: str) -> Callable[..., Any]:
    """The function, raising at its call number `call` (from 0)."""
    calls = itertools.count()

    @functools.wraps(function)  # signatures are read by pipelines and by us
    def fails_once(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Planted(where)
        return function(*args, **kwargs)

    return fails_once


# Where a rank fails, how the fault gets there (pipe, call number), and what the other ranks say of the place.
FAULTS: dict[str, tuple[str, str, int, str]] = {
    "text encoder": ("text_encoder", "forward", 0, "the start of the run"),
    "timesteps": ("scheduler", "set_timesteps", 0, "the start of the run"),
    "first evaluation": ("unet", "forward", 0, "warm-up, step 0"),
    "later evaluation": ("unet", "forward", 2, "warm-up, step 2"),
    "scheduler": ("scheduler", "step", 1, "warm-up, step 1"),
    "last scheduler step": ("scheduler", "step", 3, "warm-up, step 3"),
}


def run_with_fault(fault: str, faulty: int, changes: dict[str, Any], config: dict[str, Any]) -> tuple[Outcome, Outcome]:
    """How a call with a fault on one rank ends, and the one after it without."""
    part, function, call, _ = FAULTS[fault]
    pipe = build(NAME)
    owner = getattr(pipe, part)
    original = getattr(owner, function)
    if rank() == faulty:
        setattr(owner, function, failing(original, call, fault))
    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    outcome = attempt(lambda: generate(parallel, NAME, **changes))
    again = attempt(lambda: generate(parallel, NAME, **changes))  # the fault came once
    return outcome, again


@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_on_one_rank_is_raised_on_all(fault: str, faulty: int) -> None:
    results = run_ranks(run_with_fault, 2, fault, faulty, {}, {})
    outcomes, again = zip(*results, strict=True)
    check_story(outcomes, faulty, FAULTS[fault][3], fault)
    expected = generated_one_part_after_another(NAME)
    assert all(torch.equal(outcome.value, expected) for outcome in again)


@pytest.mark.parametrize(
    ("ranks", "changes", "config"),
    [
        pytest.param(2, {}, {"strategy": "serial"}, id="serial"),
        pytest.param(2, {"guidance_scale": 1.0}, {}, id="one image without guidance"),
        pytest.param(2, {"guidance_scale": 1.0, "num_images_per_prompt": 3}, {}, id="three without guidance"),
        pytest.param(4, {"num_images_per_prompt": 2}, {}, id="four ranks"),
        pytest.param(4, {}, {}, id="four ranks, two of them idle"),
    ],
)
def test_an_error_is_raised_on_all_whatever_the_ranks_share(
    ranks: int, changes: dict[str, Any], config: dict[str, Any]
) -> None:
    results = run_ranks(run_with_fault, ranks, "scheduler", 1, changes, config)
    outcomes, again = zip(*results, strict=True)
    check_story(outcomes, 1, "warm-up, step 1", "scheduler")
    assert all(torch.equal(outcome.value, again[0].value) for outcome in again)


def check_story(outcomes: tuple[Outcome, ...], faulty: int, where: str, message: str) -> None:
    """The rank at fault raises its own error, the others name rank, place and cause; nobody waits for a deadline."""
    for number, outcome in enumerate(outcomes):
        if number == faulty:
            assert (outcome.error, outcome.message) == ("Planted", message)
        else:
            assert outcome.error == "RankError", outcome
            assert outcome.message == f"rank {faulty} failed in {where}: Planted: {message}"
        assert outcome.seconds < QUICK


@pytest.mark.parametrize(
    ("config", "steps"),
    [
        pytest.param({}, [0, 1, 2, 3], id="cfg"),
        pytest.param({"strategy": "serial"}, [0, 1, 2, 3], id="serial"),
        pytest.param(capped(8, 1, 4, split_point=1), [0, 1, 2, 3], id="pipelined"),
        pytest.param({"strategy": "hybrid", "full_steps": "0-1,6-7", "step_kind": "reuse"}, [0, 1, 2, 3], id="reuse"),
        pytest.param(
            {"strategy": "hybrid", "full_steps": "0-1,5-7", "step_kind": "cached"}, [0, 1, 2, 3, 4], id="cached"
        ),
        pytest.param({"strategy": "hybrid", "quality": "exact"}, [0, 1, 2], id="full steps of hybrid, read at once"),
    ],
)
def test_the_other_rank_goes_on_until_it_reads_of_the_error(config: dict[str, Any], steps: list[int]) -> None:
    """The error of step 2 is told in the next message, which is read with it or before the one after it."""
    (mine, _), (other, seen) = run_ranks(run_and_count, 2, config)
    assert (mine.error, other.error) == ("Planted", "RankError")
    assert other.message.endswith(", step 2: Planted: callback")
    assert seen == steps


def run_and_count(config: dict[str, Any]) -> tuple[Outcome, list[int]]:
    steps: list[int] = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2 and rank() == 0:
            raise Planted("callback")
        steps.append(step)
        return tensors

    parallel = parallelize(build("sd3"), ParallelConfig(timeout=GROUP_TIMEOUT, **config))
    outcome = attempt(lambda: generate(parallel, "sd3", num_inference_steps=8, callback_on_step_end=callback))
    return outcome, steps


def test_two_ranks_that_fail_at_different_places() -> None:
    results = run_ranks(run_with_two_faults, 4)
    outcomes, again = zip(*results, strict=True)
    assert [outcome.message for outcome in outcomes[:2]] == ["later evaluation", "scheduler"]
    for outcome in outcomes[2:]:
        assert outcome.error == "RankError"
        assert outcome.message == (
            "rank 0 failed in warm-up, step 2: Planted: later evaluation; "
            "rank 1 failed in warm-up, step 1: Planted: scheduler"
        )
    assert all(torch.equal(outcome.value, again[0].value) for outcome in again)


def run_with_two_faults() -> tuple[Outcome, Outcome]:
    """Rank 1 fails after the gather of step 1, rank 0 before that of step 2, in which both say so."""
    faults = {0: "later evaluation", 1: "scheduler"}
    faulty = rank() if rank() in faults else -1
    return run_with_fault(faults.get(rank(), "scheduler"), faulty, {"num_images_per_prompt": 2}, {})


def test_an_error_in_a_callback() -> None:
    results = run_ranks(run_with_faulty_callback, 2)
    check_story(tuple(results), 1, "warm-up, step 2", "callback")


def run_with_faulty_callback() -> Outcome:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 2 and rank() == 1:
            raise Planted("callback")
        return tensors

    parallel = parallelize(build(NAME), ParallelConfig(timeout=GROUP_TIMEOUT))
    return attempt(lambda: generate(parallel, NAME, callback_on_step_end=callback))


def test_an_error_in_the_extra_evaluation_of_skip_layer_guidance() -> None:
    results = run_ranks(run_with_faulty_extra_evaluation, 2)
    check_story(tuple(results), 1, "warm-up, step 1", "extra evaluation")


def run_with_faulty_extra_evaluation() -> Outcome:
    pipe = build("sd3")
    network = denoiser_of(pipe)
    if rank() == 1:
        network.forward = failing(network.forward, 2, "extra evaluation")  # step 0 has no extra one
    parallel = parallelize(pipe, ParallelConfig(timeout=GROUP_TIMEOUT))
    changes = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.9}
    return attempt(lambda: generate(parallel, "sd3", num_images_per_prompt=2, **changes))


def test_an_error_while_the_leader_decodes() -> None:
    results = run_ranks(run_with_faulty_decoder, 2)
    outcomes, again = zip(*results, strict=True)
    assert (outcomes[0].error, outcomes[0].message) == ("Planted", "decoder")
    assert outcomes[1].error == "RankError"
    assert outcomes[1].message == "rank 0 failed in the end of the run: Planted: decoder"
    assert [outcome.value for outcome in again] == [["Image"], None]


def run_with_faulty_decoder() -> tuple[Outcome, Outcome]:
    pipe = build(NAME)
    if rank() == 0:
        pipe.vae.decode = failing(pipe.vae.decode, 0, "decoder")
    parallel = parallelize(pipe, ParallelConfig(timeout=GROUP_TIMEOUT))

    def images() -> list[str] | None:
        made = parallel(**call_arguments(NAME, output_type="pil")).images
        assert made is None or all(isinstance(image, Image.Image) for image in made)
        return None if made is None else [type(image).__name__ for image in made]

    return attempt(images), attempt(images)


def test_errors_on_all_ranks_stay_what_they_are() -> None:
    outcomes = run_ranks(run_with_bad_size, 2)
    assert [outcome.error for outcome in outcomes] == ["ValueError"] * 2
    assert all("divisible by 8" in outcome.message for outcome in outcomes)


def run_with_bad_size() -> Outcome:
    parallel = parallelize(build(NAME), ParallelConfig(timeout=GROUP_TIMEOUT))
    return attempt(lambda: generate(parallel, NAME, height=33))


def test_ranks_that_part_ways_raise() -> None:
    """A callback that cuts guidance on one rank only: the ranks no longer do the same."""
    outcomes = run_ranks(run_with_one_rank_leaving, 2)
    for outcome in outcomes:
        assert outcome.error == "RankError"
        assert "rank 1 left the denoising loop" in outcome.message
        assert outcome.seconds < QUICK


def run_with_one_rank_leaving() -> Outcome:
    pipe = build(NAME)
    if rank() == 1:
        step = pipe.scheduler.step

        def interrupt_in_the_middle(*args: Any, **kwargs: Any) -> Any:
            pipe.__class__ = type("Interrupted", (type(pipe),), {"interrupt": property(lambda self: True)})
            return step(*args, **kwargs)

        pipe.scheduler.step = interrupt_in_the_middle
    parallel = parallelize(pipe, ParallelConfig(timeout=GROUP_TIMEOUT))
    return attempt(lambda: generate(parallel, NAME))
