"""Runs in which one rank fails at a chosen place and step, and what every rank must then say."""

from __future__ import annotations

import threading
from typing import Any

import torch

from hybridiff import ParallelConfig, parallelize
from support.jobs import Outcome, attempt, rank
from support.pipelines import build, generate
from support.schedules import callback_at

GROUP_TIMEOUT = 60.0  # no rank is to wait that long
SOON = 5.0  # a deadline that is meant to pass, long enough for ranks on a busy machine that are all there
QUICK = 30.0  # far below the deadline, far above what a run takes on a busy machine


class Planted(Exception):
    """An error that cannot be pickled, as some of CUDA's cannot."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.handle = threading.Lock()


def run_with_fault(
    name: str, faulty: int, place: str, step: int, config: dict[str, Any], **changes: Any
) -> tuple[Outcome, Outcome]:
    """How a run ends in which one rank fails in a step, and the run after it.

    Args:
        name: The pipeline.
        faulty: The rank.
        place: `callback`, `scheduler`, or a name of `parts`.
        step: The step.
        config: Of the runs.
        changes: To the arguments of both calls.
    """
    pipe = build(name)
    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    hooks: list[Any] = []

    def fail(*_: Any) -> None:
        while hooks:
            hooks.pop().remove()
        raise Planted(place)

    def arm(_: Any) -> None:
        if rank() == faulty:
            hooks.append(parts(name, pipe)[place].register_forward_pre_hook(fail))

    def raise_here(_: Any) -> None:
        if rank() == faulty:
            raise Planted(place)

    if place == "callback":
        callback = callback_at(step, raise_here)
    elif place == "scheduler":
        callback = callback_at(step - 1, lambda _: _fail_once(pipe.scheduler) if rank() == faulty else None)
    else:
        callback = callback_at(step - 1, arm)
    outcome = attempt(lambda: generate(parallel, name, **changes, callback_on_step_end=callback))
    return outcome, attempt(lambda: generate(parallel, name, **changes))


def parts(name: str, pipe: Any) -> dict[str, Any]:
    """A layer within each stage, wherever the network is split, and the stage-less embedding."""
    if name == "sd15":
        return {
            "inner": pipe.unet.mid_block.resnets[0],
            "outer": pipe.unet.conv_out,
            "embedding": pipe.unet.time_embedding,
        }
    blocks = pipe.transformer.transformer_blocks
    return {"inner": blocks[1].attn, "outer": pipe.transformer.proj_out, "embedding": pipe.transformer.time_text_embed}


def _fail_once(scheduler: Any) -> None:
    step = scheduler.step

    def failing(*args: Any, **kwargs: Any) -> Any:
        scheduler.step = step
        raise Planted("scheduler")

    scheduler.step = failing


def check_fault(
    results: list[tuple[Outcome, Outcome]], faulty: int, place: str, where: str, expected: torch.Tensor
) -> None:
    """The rank at fault raises its own error, the others name rank, phase, step and cause; then all generate again."""
    for number, (outcome, again) in enumerate(results):
        if number == faulty:
            assert (outcome.error, outcome.message) == ("Planted", place)
        else:
            assert outcome.error == "RankError", outcome
            assert outcome.message == f"rank {faulty} failed in {where}: Planted: {place}"
        assert outcome.seconds < QUICK
        assert again.error is None, again
        assert torch.equal(again.value, expected)
