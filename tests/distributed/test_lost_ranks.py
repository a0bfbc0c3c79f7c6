"""Ranks that die, hang or answer too late: the others end at the deadline, say why, and what to do."""

from __future__ import annotations

import functools
import os
import signal
import time
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.distributed import reading
from hybridiff.distributed.readback import Readback
from support.events import FakeEvent
from support.failing import GROUP_TIMEOUT, QUICK, SOON, Planted
from support.jobs import Outcome, attempt, generate_parallel, rank
from support.oracles import generated_one_part_after_another
from support.pipelines import build, denoiser_of, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped

pytestmark = pytest.mark.distributed

NAME = "sdxl two levels"


@pytest.mark.parametrize(("ranks", "way"), [(2, "exit"), (2, "kill"), (4, "kill")])
def test_a_rank_that_dies(ranks: int, way: str) -> None:
    outcomes = run_ranks(run_until_death, ranks, way, 8.0, {}, may_die=[1])
    check_survivors(outcomes, 8.0)


@pytest.mark.parametrize(
    "config", [{"strategy": "serial"}, capped(6, 1, 3, split_point=1)], ids=["serial", "pipelined"]
)
def test_a_rank_that_dies_in_another_strategy(config: dict[str, Any]) -> None:
    check_survivors(run_ranks(run_until_death, 2, "kill", 8.0, config, may_die=[1]), 8.0)


def check_survivors(outcomes: list[Any], timeout: float) -> None:
    assert outcomes[1] is None
    for outcome, again, anew in (outcomes[number] for number in range(len(outcomes)) if number != 1):
        assert outcome.error == "RankError"
        assert f"no answer from the other ranks within {timeout:g} s, or one died" in outcome.message
        assert again.error == "RankError"
        assert "the process group broke in an earlier step; start the ranks again" in again.message
        assert anew.error == "RankError"
        assert f"the other ranks did not form a group within {timeout:g} s" in anew.message
        assert anew.message.endswith("start the ranks again")
        assert max(outcome.seconds, again.seconds, anew.seconds) < QUICK


def run_until_death(way: str, timeout: float, config: dict[str, Any]) -> tuple[Outcome, Outcome, Outcome]:
    """How a run ends in which rank 1 dies, a second call, and a second `parallelize`."""

    def die(_: Any) -> None:
        if rank() == 1:
            if way == "exit":
                os._exit(3)
            os.kill(os.getpid(), signal.SIGKILL)

    changes = {"num_inference_steps": 6}
    pipe = build(NAME)
    parallel = parallelize(pipe, ParallelConfig(timeout=timeout, **config))
    outcome = attempt(lambda: generate(parallel, NAME, **changes, callback_on_step_end=callback_at(2, die)))
    again = attempt(lambda: generate(parallel, NAME, **changes))
    return outcome, again, attempt(lambda: parallelize(pipe, ParallelConfig(timeout=timeout, **config)))


@pytest.mark.parametrize("strategy", ["cfg", "serial"])
def test_a_rank_that_sleeps_beyond_the_deadline(strategy: str) -> None:
    outcome = run_ranks(run_beside_a_sleeper, 2, strategy, may_die=[1])[0]
    assert outcome.error == "RankError"
    assert outcome.message.startswith("rank 0 in warm-up, step 2")
    assert f"no answer from the other ranks within {SOON:g} s" in outcome.message
    assert outcome.seconds < QUICK


def run_beside_a_sleeper(strategy: str) -> Outcome:
    def sleep(_: Any) -> None:
        if rank() == 1:
            time.sleep(600)

    parallel = parallelize(build(NAME), ParallelConfig(strategy=strategy, timeout=SOON))
    return attempt(lambda: generate(parallel, NAME, callback_on_step_end=callback_at(1, sleep)))


def test_a_status_that_never_arrives() -> None:
    """As on GPUs, where a message that hangs does not block the host: it shows where its status is read."""
    mine, other = run_ranks(run_with_deaf_rank, 2)
    assert (mine.error, other.error) == ("RankError", "RankError")
    assert mine.message.startswith("rank 0 in warm-up, step 3, waiting to hear how the ranks fare: no answer from")
    assert other.message.startswith("rank 1 in warm-up, step 3, waiting to gather the predictions: no answer from")
    assert max(mine.seconds, other.seconds) < QUICK


def run_with_deaf_rank() -> Outcome:
    """Rank 0 never hears what was said in step 2."""

    def deafen(_: Any) -> None:
        if rank() == 0:
            reading.Readback = functools.partial(Readback, make_event=lambda _: FakeEvent(ready_after=None))  # type: ignore[misc]

    parallel = parallelize(build(NAME), ParallelConfig(timeout=SOON))
    return attempt(lambda: generate(parallel, NAME, callback_on_step_end=callback_at(1, deafen)))


def test_statuses_that_take_their_time_change_nothing() -> None:
    """Every number comes by way of an event that has not happened when it is first asked for."""
    generated = run_ranks(generate_with_slow_events, 2)
    assert all(torch.equal(latents, generated_one_part_after_another(NAME)) for latents in generated)


def generate_with_slow_events() -> torch.Tensor:
    reading.Readback = functools.partial(Readback, make_event=lambda _: FakeEvent(ready_after=3))  # type: ignore[misc]
    return generate_parallel(NAME, {}, timeout=GROUP_TIMEOUT)[0].latents


@pytest.mark.parametrize("detached", [True, False], ids=["detached in between", "not detached"])
@pytest.mark.parametrize("config", [{}, capped(6, 1, 3, split_point=1)], ids=["cfg", "pipelined"])
def test_parallelize_again_after_a_failed_call(config: dict[str, Any], detached: bool) -> None:
    expected = generated_one_part_after_another(NAME)
    for number, (failed, again, stock) in enumerate(run_ranks(parallelize_after_failure, 2, config, detached)):
        assert failed.error == ("Planted" if number == 1 else "RankError")
        assert torch.equal(again, expected)
        assert torch.equal(stock, generate(build(NAME), NAME))


def parallelize_after_failure(config: dict[str, Any], detached: bool) -> tuple[Outcome, torch.Tensor, torch.Tensor]:
    """How the first call ends, the image of a second `parallelize`, and that of the stock pipeline after all."""

    def fail(_: Any) -> None:
        if rank() == 1:
            raise Planted("callback")

    pipe = build(NAME)
    first = parallelize(pipe, ParallelConfig(timeout=GROUP_TIMEOUT, **config))
    failed = attempt(lambda: generate(first, NAME, num_inference_steps=6, callback_on_step_end=callback_at(2, fail)))
    if detached:
        first.detach()
    with parallelize(pipe, ParallelConfig(timeout=GROUP_TIMEOUT, outputs="all")) as second:
        again = generate(second, NAME)
    assert not hasattr(denoiser_of(pipe), "_diffusers_hook")
    return failed, again, generate(pipe, NAME)


def test_parallelize_again_after_a_deadline_has_passed() -> None:
    """Both ranks are alive: the second group knows nothing of the first."""
    expected = generated_one_part_after_another(NAME)
    for late, again in run_ranks(parallelize_after_deadline, 2):
        assert late.error == "RankError"
        assert f"no answer from the other ranks within {SOON:g} s, or one died" in late.message
        assert torch.equal(again, expected)


def parallelize_after_deadline() -> tuple[Outcome, torch.Tensor]:
    def sleep(_: Any) -> None:
        if rank() == 1:
            time.sleep(2 * SOON)

    pipe = build(NAME)
    first = parallelize(pipe, ParallelConfig(timeout=SOON))
    late = attempt(lambda: generate(first, NAME, callback_on_step_end=callback_at(1, sleep)))
    second = parallelize(pipe, ParallelConfig(timeout=GROUP_TIMEOUT, outputs="all"))
    return late, generate(second, NAME)
