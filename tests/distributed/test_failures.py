"""Contract 6: whatever happens on one rank, every rank ends, quickly, with a clear error."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from PIL import Image

from hybridiff import ParallelConfig, RankError, parallelize
from support.jobs import Outcome, attempt, rank
from support.oracles import drawn_one_part_after_another
from support.pipelines import build, call_arguments, denoiser_of, draw
from support.ranks import run_ranks
from support.schedules import callback_at

pytestmark = pytest.mark.distributed

NAME = "sdxl two levels"
GROUP_TIMEOUT = 60.0  # of the runs in which no rank is to wait that long
QUICK = 30.0  # far below the group's timeout, far above what a run takes on a busy machine


class Planted(Exception):
    """An error that cannot be pickled, as some of CUDA's cannot."""

    def __init__(self, where: str, handle: object) -> None:
        super().__init__(where)
        self.handle = handle


def failing(function: Callable[..., Any], call: int, where: str) -> Callable[..., Any]:
    """The function, raising at its call number `call` (from 0)."""
    calls = itertools.count()

    @functools.wraps(function)  # signatures are read by pipelines and by us
    def fails_once(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == call:
            raise Planted(where, lambda: None)
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
    outcome = attempt(lambda: draw(parallel, NAME, **changes))
    again = attempt(lambda: draw(parallel, NAME, **changes))  # the fault came once
    return outcome, again


@pytest.mark.parametrize("faulty", [0, 1])
@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_on_one_rank_is_raised_on_all(fault: str, faulty: int) -> None:
    results = run_ranks(run_with_fault, 2, fault, faulty, {}, {})
    outcomes, again = zip(*results, strict=True)
    check_story(outcomes, faulty, FAULTS[fault][3], fault)
    expected = drawn_one_part_after_another(NAME)
    assert all(torch.equal(outcome.value, expected) for outcome in again)


@pytest.mark.parametrize(
    ("ranks", "changes", "config"),
    [
        pytest.param(2, {}, {"strategy": "serial"}, id="serial"),
        pytest.param(2, {"guidance_scale": 1.0}, {}, id="one picture without guidance"),
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
            raise Planted("callback", lambda: None)
        return tensors

    parallel = parallelize(build(NAME), ParallelConfig(timeout=GROUP_TIMEOUT))
    return attempt(lambda: draw(parallel, NAME, callback_on_step_end=callback))


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
    return attempt(lambda: draw(parallel, "sd3", num_images_per_prompt=2, **changes))


def test_an_error_while_the_leader_decodes() -> None:
    results = run_ranks(run_with_faulty_decoder, 2)
    outcomes, again = zip(*results, strict=True)
    assert (outcomes[0].error, outcomes[0].message) == ("Planted", "decoder")
    assert outcomes[1].error == "RankError"
    assert outcomes[1].message.startswith("rank 0 failed in ")
    assert outcomes[1].message.endswith(": Planted: decoder")
    assert [outcome.value for outcome in again] == [["Image"], None]


def run_with_faulty_decoder() -> tuple[Outcome, Outcome]:
    pipe = build(NAME)
    if rank() == 0:
        pipe.vae.decode = failing(pipe.vae.decode, 0, "decoder")
    parallel = parallelize(pipe, ParallelConfig(timeout=GROUP_TIMEOUT))

    def pictures() -> list[str] | None:
        images = parallel(**call_arguments(NAME, output_type="pil")).images
        assert images is None or all(isinstance(image, Image.Image) for image in images)
        return None if images is None else [type(image).__name__ for image in images]

    return attempt(pictures), attempt(pictures)


def test_errors_on_all_ranks_stay_what_they_are() -> None:
    outcomes = run_ranks(run_with_bad_size, 2)
    assert [outcome.error for outcome in outcomes] == ["ValueError"] * 2
    assert all("divisible by 8" in outcome.message for outcome in outcomes)


def run_with_bad_size() -> Outcome:
    parallel = parallelize(build(NAME), ParallelConfig(timeout=GROUP_TIMEOUT))
    return attempt(lambda: draw(parallel, NAME, height=33))


@pytest.mark.parametrize("way", ["exit", "kill"])
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_that_dies(ranks: int, way: str) -> None:
    outcomes = run_ranks(run_until_death, ranks, way, 8.0, may_die=[1])
    survivors = [outcome for number, outcome in enumerate(outcomes) if number != 1]
    assert outcomes[1] is None
    for outcome, again in survivors:
        assert outcome.error == "RankError"
        assert "no answer from the other ranks within 8 s, or one died" in outcome.message
        assert again.error == "RankError"
        assert "start the ranks again" in again.message
        assert outcome.seconds < QUICK


def run_until_death(way: str, timeout: float) -> tuple[Outcome, Outcome]:
    def die_at_step_1(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1 and rank() == 1:
            if way == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)
        return tensors

    parallel = parallelize(build(NAME), ParallelConfig(timeout=timeout))
    outcome = attempt(lambda: draw(parallel, NAME, callback_on_step_end=die_at_step_1))
    return outcome, attempt(lambda: draw(parallel, NAME))


@pytest.mark.parametrize("strategy", ["cfg", "serial"])
def test_a_rank_that_sleeps_beyond_the_deadline(strategy: str) -> None:
    outcome = run_ranks(run_beside_a_sleeper, 2, strategy, may_die=[1])[0]
    assert outcome.error == "RankError"
    assert outcome.message.startswith("rank 0 in warm-up, step 2")
    assert "no answer from the other ranks within 2 s" in outcome.message
    assert outcome.seconds < QUICK


def run_beside_a_sleeper(strategy: str) -> Outcome:
    def sleep_at_step_1(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 1 and rank() == 1:
            time.sleep(600)
        return tensors

    parallel = parallelize(build(NAME), ParallelConfig(strategy=strategy, timeout=2.0))
    return attempt(lambda: draw(parallel, NAME, callback_on_step_end=sleep_at_step_1))


@pytest.mark.parametrize("config", [{}, {"strategy": "serial"}], ids=["cfg", "serial"])
@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}], ids=["guided", "unguided"])
@pytest.mark.parametrize("asking", [[0, 1], [1]], ids=["all ranks", "one rank"])
def test_an_interrupt_stops_all_ranks_one_step_later(
    asking: list[int], changes: dict[str, Any], config: dict[str, Any]
) -> None:
    results = run_ranks(run_with_interrupt, 2, asking, changes, config)
    for latents, steps, callbacks, expected in results:
        assert torch.equal(latents, expected)
        assert steps == 4  # asked for at the end of step 2 (of 8), heard of in step 3
        assert callbacks == [0, 1, 2, 3]


def run_with_interrupt(asking: list[int], changes: dict[str, Any], config: dict[str, Any]) -> Any:
    callbacks: list[int] = []

    def interrupt_after(last_step: int) -> Callable[..., dict[str, Any]]:
        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            callbacks.append(step)
            if step == last_step and rank() in asking:
                pipe._interrupt = True
            return tensors

        return callback

    parallel = parallelize(build(NAME), ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    changes = changes | {"num_inference_steps": 8}
    latents = draw(parallel, NAME, **changes, callback_on_step_end=interrupt_after(2))
    assert parallel.report is not None
    steps, seen = len(parallel.report.steps), list(callbacks)
    draw(parallel, NAME, **changes)  # nothing of the interrupt is left
    assert len(parallel.report.steps) == 8
    return latents, steps, seen, stock_latents_after(4, changes, config)


def stock_latents_after(steps: int, changes: dict[str, Any], config: dict[str, Any]) -> torch.Tensor:
    """What one process, playing two ranks, has drawn when it stops after so many steps."""
    seen: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].clone())
        return tensors

    parallel = parallelize(build(NAME), ParallelConfig(simulate=True, **config))
    draw(parallel, NAME, **changes, callback_on_step_end=keep)
    return seen[steps - 1]


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
    return attempt(lambda: draw(parallel, NAME))


def test_ctrl_c_on_one_rank_reaches_the_others() -> None:
    mine, other = run_ranks(interrupted_on_rank_0, 2)
    assert mine == "KeyboardInterrupt: "
    assert other == "RankError: rank 0 failed in warm-up, step 1: KeyboardInterrupt: "


def interrupted_on_rank_0() -> str:
    def interrupt(_: Any) -> None:
        if rank() == 0:
            raise KeyboardInterrupt

    parallel = parallelize(build("sdxl two levels"), ParallelConfig(timeout=60.0))
    try:
        draw(parallel, "sdxl two levels", callback_on_step_end=callback_at(1, interrupt))
    except (KeyboardInterrupt, RankError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing happened"
