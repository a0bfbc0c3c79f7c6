"""Contract 6 in pipelined steps: whatever happens on one rank, both raise, quickly, and say where and why."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.failing import GROUP_TIMEOUT, QUICK, Planted, check_fault, run_with_fault
from support.jobs import Outcome, attempt, generate_parallel, rank
from support.pipelines import build, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped

pytestmark = pytest.mark.distributed

STEPS = {"num_inference_steps": 10}
TAU1, PARALLEL_STEPS = 3, 4
INNER_RANK, OUTER_RANK = 0, 1


def config_of(last: int) -> dict[str, Any]:
    """A config whose pipelined steps end with step `last`."""
    return capped(10, TAU1, last - TAU1, split_point=1)


def check(results: list[tuple[Outcome, Outcome]], faulty: int, place: str, step: int, expected: torch.Tensor) -> None:
    phase = "warm-up" if step <= TAU1 else "parallel" if step <= TAU1 + PARALLEL_STEPS else "connect"
    check_fault(results, faulty, place, f"{phase}, step {step}", expected)


def fail_in_a_run(
    name: str, faulty: int, place: str, step: int, last: int = TAU1 + PARALLEL_STEPS
) -> tuple[Outcome, Outcome]:
    return run_with_fault(name, faulty, place, step, config_of(last), **STEPS)


@pytest.fixture(scope="module")
def expected() -> dict[str, torch.Tensor]:
    config = capped(10, TAU1, PARALLEL_STEPS, split_point=1)
    return {name: generate_parallel(name, STEPS, simulate=True, **config)[0].latents for name in ("sd15", "sd3")}


@pytest.mark.parametrize(
    ("name", "faulty", "place", "step"),
    [
        pytest.param("sd15", INNER_RANK, "inner", 5, id="inner stage of a U-Net"),
        pytest.param("sd15", OUTER_RANK, "outer", 5, id="outer stage of a U-Net"),
        pytest.param("sd3", INNER_RANK, "inner", 4, id="inner stage, first pipelined step"),
        pytest.param("sd3", OUTER_RANK, "outer", 4, id="outer stage, first pipelined step"),
        pytest.param("sd3", INNER_RANK, "inner", 7, id="inner stage, last pipelined step"),
        pytest.param("sd3", OUTER_RANK, "outer", 7, id="outer stage, last pipelined step"),
        pytest.param("sd3", INNER_RANK, "embedding", 5, id="before the inner stage"),
        pytest.param("sd3", OUTER_RANK, "embedding", 5, id="before the outer stage"),
        pytest.param("sd3", INNER_RANK, "callback", 3, id="callback before the phase, rank 0"),
        pytest.param("sd3", OUTER_RANK, "callback", 3, id="callback before the phase, rank 1"),
        pytest.param("sd3", INNER_RANK, "callback", 5, id="callback, rank 0"),
        pytest.param("sd3", OUTER_RANK, "callback", 5, id="callback, rank 1"),
        pytest.param("sd3", INNER_RANK, "callback", 7, id="callback at the last pipelined step, rank 0"),
        pytest.param("sd3", OUTER_RANK, "callback", 7, id="callback at the last pipelined step, rank 1"),
        pytest.param("sd3", INNER_RANK, "embedding", 8, id="full step after the phase, rank 0"),
        pytest.param("sd3", OUTER_RANK, "outer", 8, id="full step after the phase, rank 1"),
        pytest.param("sd3", INNER_RANK, "scheduler", 6, id="scheduler, rank 0"),
        pytest.param("sd3", OUTER_RANK, "scheduler", 6, id="scheduler, rank 1"),
    ],
)
def test_an_error_on_one_rank(name: str, faulty: int, place: str, step: int, expected: dict[str, torch.Tensor]) -> None:
    results = run_ranks(fail_in_a_run, 2, name, faulty, place, step)
    check(results, faulty, place, step, expected[name])


@pytest.mark.parametrize(("faulty", "place"), [(INNER_RANK, "inner"), (OUTER_RANK, "outer"), (0, "callback")])
def test_an_error_in_the_very_last_step(faulty: int, place: str) -> None:
    """The phase ends with the run: the other rank is on its way out."""
    for number, (outcome, again) in enumerate(run_ranks(fail_in_a_run, 2, "sd3", faulty, place, 9, 9)):
        if number == faulty:
            assert (outcome.error, outcome.message) == ("Planted", place)
        else:
            assert outcome.error == "RankError"
            assert outcome.message == f"rank {faulty} failed in parallel, step 9: Planted: {place}"
        assert outcome.seconds < QUICK
        assert again.error is None


def test_errors_on_both_ranks_in_one_step(expected: dict[str, torch.Tensor]) -> None:
    results = run_ranks(run_with_two_faults, 2)
    for number, (outcome, again) in enumerate(results):
        assert (outcome.error, outcome.message) == ("Planted", ("inner", "outer")[number])
        assert outcome.seconds < QUICK
        assert torch.equal(again.value, expected["sd3"])


def run_with_two_faults() -> tuple[Outcome, Outcome]:
    mine = rank()
    return fail_in_a_run("sd3", mine, ("inner", "outer")[mine], 5)


@pytest.mark.parametrize("leaving", [INNER_RANK, OUTER_RANK])
@pytest.mark.parametrize("step", [3, 5, 7], ids=["before the phase", "within", "at its last step"])
def test_ranks_that_part_ways(leaving: int, step: int) -> None:
    """One rank leaves the loop without a word of it."""
    for outcome in run_ranks(run_with_one_leaving, 2, leaving, step):
        assert outcome.error == "RankError"
        assert f"rank {leaving} left the denoising loop" in outcome.message
        assert f"rank {1 - leaving} goes on" in outcome.message
        assert outcome.seconds < QUICK


def run_with_one_leaving(leaving: int, step: int) -> Outcome:
    def leave(pipe: Any) -> None:
        if rank() == leaving:
            pipe.__class__ = type("Interrupted", (type(pipe),), {"interrupt": property(lambda self: True)})

    config = capped(10, TAU1, PARALLEL_STEPS, split_point=1, timeout=GROUP_TIMEOUT)
    parallel = parallelize(build("sd3"), ParallelConfig(**config))
    return attempt(lambda: generate(parallel, "sd3", **STEPS, callback_on_step_end=callback_at(step, leave)))


@pytest.mark.parametrize("faulty", [0, 1])
def test_an_error_while_the_network_is_measured(faulty: int) -> None:
    """Before the buffers have a size."""
    for number, (outcome, again) in enumerate(run_ranks(run_with_fault_in_measurement, 2, faulty)):
        if number == faulty:
            assert (outcome.error, outcome.message) == ("Planted", "measurement")
        else:
            assert outcome.error == "RankError"
            assert outcome.message.startswith(f"rank {faulty} failed in ")
            assert outcome.message.endswith("Planted: measurement")
        assert outcome.seconds < QUICK
        assert again.error is None


def run_with_fault_in_measurement(faulty: int) -> tuple[Outcome, Outcome]:
    pipe = build("sd3")
    calls = iter(range(100))
    hooks: list[Any] = []

    def fail(*_: Any) -> None:
        if rank() == faulty and next(calls) == 2:
            hooks.pop().remove()
            raise Planted("measurement")

    hooks.append(pipe.transformer.proj_out.register_forward_pre_hook(fail))
    config = capped(10, TAU1, PARALLEL_STEPS, outputs="all", timeout=GROUP_TIMEOUT)
    parallel = parallelize(pipe, ParallelConfig(**config))
    return attempt(lambda: generate(parallel, "sd3", **STEPS)), attempt(lambda: generate(parallel, "sd3", **STEPS))
