"""Requests to stop: all ranks stop after the same step, whoever asked; Ctrl-C on one rank reaches the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, RankError, parallelize
from hybridiff.distributed.process import ProcessComm
from support.failing import GROUP_TIMEOUT, SOON, parts
from support.jobs import rank
from support.pipelines import build, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped

pytestmark = pytest.mark.distributed

NAME = "sdxl two levels"
EIGHT = {"num_inference_steps": 8}


@pytest.mark.parametrize("config", [{}, {"strategy": "serial"}], ids=["cfg", "serial"])
@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}], ids=["guided", "unguided"])
@pytest.mark.parametrize("asking", [{0: 2, 1: 2}, {1: 2}, {0: 2, 1: 3}], ids=["all ranks", "one rank", "one by one"])
def test_an_interrupt_stops_all_ranks_two_steps_later(
    asking: dict[int, int], changes: dict[str, Any], config: dict[str, Any]
) -> None:
    """Asked for at the end of step 2 (of 8), told in the message of step 3, read before that of step 4."""
    for latents, steps, callbacks, expected in run_ranks(run_with_interrupt, 2, asking, changes, config):
        assert torch.equal(latents, expected)
        assert steps == 5
        assert callbacks == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("last", [5, 6, 7])
def test_an_interrupt_near_the_end_lets_the_run_come_to_it(last: int) -> None:
    for latents, steps, _, expected in run_ranks(run_with_interrupt, 2, {1: last}, {}, {}):
        assert torch.equal(latents, expected)
        assert steps == 8


def run_with_interrupt(asking: dict[int, int], changes: dict[str, Any], config: dict[str, Any]) -> Any:
    """Latents, steps and callbacks of an interrupted run, and what one process has after as many steps.

    Args:
        asking: The step at whose end each rank asks for the interrupt.
        changes: To the arguments of the call.
        config: Of the run.
    """
    callbacks: list[int] = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        callbacks.append(step)
        if step == asking.get(rank()):
            pipe._interrupt = True
        return tensors

    parallel = parallelize(build(NAME), ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    latents = generate(parallel, NAME, **changes | EIGHT, callback_on_step_end=callback)
    assert parallel.report is not None
    steps, seen = len(parallel.report.steps), list(callbacks)
    generate(parallel, NAME, **changes | EIGHT)  # nothing of the interrupt is left
    assert len(parallel.report.steps) == 8
    return latents, steps, seen, latents_after(steps, changes, config)


def latents_after(steps: int, changes: dict[str, Any], config: dict[str, Any]) -> torch.Tensor:
    """What one process, playing two ranks, has after so many steps."""
    seen: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(tensors["latents"].clone())
        return tensors

    parallel = parallelize(build(NAME), ParallelConfig(simulate=True, **config))
    generate(parallel, NAME, **changes | EIGHT, callback_on_step_end=keep)
    return seen[steps - 1]


CACHED = {"strategy": "hybrid", "full_steps": "0-1,5,7"}
PUBLISHED = capped(8, 2, 3, split_point=1)
"""Steps 3 to 5 are pipelined."""


@pytest.mark.parametrize(
    ("config", "place", "step", "where"),
    [
        pytest.param({}, "callback", 1, "warm-up, step 1", id="cfg, callback"),
        pytest.param({}, "outer", 2, "warm-up, step 2", id="cfg, network"),
        pytest.param({"strategy": "serial"}, "outer", 2, "warm-up, step 2", id="serial, network"),
        pytest.param({}, "text encoder", 0, "the start of the run", id="text encoder"),
        pytest.param(CACHED, "callback", 3, "parallel, step 3", id="cached step"),
        pytest.param(CACHED, "outer", 5, "parallel, step 5", id="full step between cached ones"),
        pytest.param(PUBLISHED, "callback", 4, "parallel, step 4", id="pipelined step, callback"),
        pytest.param(PUBLISHED, "embedding", 4, "parallel, step 4", id="pipelined step, network"),
    ],
)
@pytest.mark.parametrize("faulty", [0, 1])
def test_ctrl_c_on_one_rank_reaches_the_others(
    config: dict[str, Any], place: str, step: int, where: str, faulty: int
) -> None:
    results = run_ranks(run_with_ctrl_c, 2, config, place, step, faulty)
    for number, (ended, again) in enumerate(results):
        if number == faulty:
            assert ended == "KeyboardInterrupt: "
        else:
            assert ended == f"RankError: rank {faulty} failed in {where}: KeyboardInterrupt: "
        assert torch.equal(again, results[0][1])


def run_with_ctrl_c(config: dict[str, Any], place: str, step: int, faulty: int) -> tuple[str, torch.Tensor]:
    """How an interrupted run ends, and the image of the next one."""
    pipe = build("sd3")
    hooks: list[Any] = []

    def interrupt(*_: Any) -> None:
        if rank() == faulty:
            while hooks:
                hooks.pop().remove()
            raise KeyboardInterrupt

    def arm(_: Any) -> None:
        hooks.append(parts("sd3", pipe)[place].register_forward_pre_hook(interrupt))

    callback: Callable[..., Any] | None = callback_at(step, interrupt) if place == "callback" else None
    if place == "text encoder":
        hooks.append(pipe.text_encoder.register_forward_pre_hook(interrupt))
    elif callback is None:
        callback = callback_at(step - 1, arm)
    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    try:
        generate(parallel, "sd3", **EIGHT, callback_on_step_end=callback)
        ended = "nothing happened"
    except (KeyboardInterrupt, RankError) as error:
        ended = f"{type(error).__name__}: {error}"
    for hook in hooks:
        hook.remove()
    return ended, generate(parallel, "sd3", **EIGHT)


@pytest.mark.parametrize(
    ("config", "message", "step", "where"),
    [
        pytest.param({}, "all_gather", 2, "warm-up, step 2", id="cfg"),
        pytest.param({}, "all_gather", 7, "warm-up, step 7", id="cfg, last step"),
        pytest.param({"strategy": "serial"}, "all_gather", 2, "warm-up, step 2", id="serial"),
        pytest.param(CACHED, "all_gather", 5, "parallel, step 5", id="hybrid, before a cached step"),
        pytest.param(PUBLISHED, "all_gather", 2, "warm-up, step 2", id="published, before a pipelined step"),
        pytest.param(PUBLISHED, "sendrecv", 3, "parallel, step 3", id="pipelined step, swap"),
        pytest.param(PUBLISHED, "broadcast", 4, "parallel, step 4", id="pipelined step, prediction"),
        pytest.param(PUBLISHED, "broadcast", 5, "parallel, step 5", id="last pipelined step, prediction"),
    ],
)
@pytest.mark.parametrize("faulty", [0, 1])
def test_ctrl_c_while_a_rank_waits_for_a_message(
    config: dict[str, Any], message: str, step: int, where: str, faulty: int
) -> None:
    """Python raises it when the message is there: the next one is to say so."""
    for number, ended in enumerate(run_ranks(run_with_ctrl_c_in_message, 2, config, message, step, faulty)):
        if number == faulty:
            assert ended == "KeyboardInterrupt: "
        else:
            assert ended == f"RankError: rank {faulty} failed in {where}: KeyboardInterrupt: "


def run_with_ctrl_c_in_message(config: dict[str, Any], message: str, step: int, faulty: int) -> str:
    comm = ProcessComm(SOON)
    send = getattr(comm, message)

    def interrupted(*args: Any) -> None:
        send(*args)
        setattr(comm, message, send)
        raise KeyboardInterrupt

    def arm(_: Any = None) -> None:
        if rank() == faulty:
            setattr(comm, message, interrupted)

    parallel = parallelize(build("sd3"), ParallelConfig(timeout=SOON, **config), comm=comm)
    try:
        generate(parallel, "sd3", **EIGHT, callback_on_step_end=callback_at(step - 1, arm))
    except (KeyboardInterrupt, RankError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing happened"
