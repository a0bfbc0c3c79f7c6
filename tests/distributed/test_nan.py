"""NaN out of the network of one rank: every rank says so, with rank, phase and step, instead of a black image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.failing import GROUP_TIMEOUT, QUICK, Planted, parts
from support.jobs import Outcome, attempt, rank
from support.pipelines import build, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped

pytestmark = pytest.mark.distributed

STEPS = {"num_inference_steps": 8}
TWO = {"num_images_per_prompt": 2}
SERIAL = {"strategy": "serial"}
UNGUIDED = {"guidance_scale": 1.0}
CACHED = {"strategy": "hybrid", "full_steps": "0-1,4,7", "step_kind": "cached"}
REUSE = CACHED | {"step_kind": "reuse"}
PUBLISHED = capped(8, 2, 3, split_point=1)
"""Steps 3 to 5 are pipelined."""


@pytest.mark.parametrize(
    ("ranks", "config", "changes", "faulty", "place", "step", "where"),
    [
        pytest.param(2, {}, {}, 0, "outer", 0, "warm-up, step 0", id="cfg, first step"),
        pytest.param(2, {}, {}, 1, "outer", 3, "warm-up, step 3", id="cfg"),
        pytest.param(2, {}, {}, 1, "outer", 7, "warm-up, step 7", id="cfg, last step"),
        pytest.param(4, {}, TWO, 2, "outer", 3, "warm-up, step 3", id="cfg, four ranks"),
        pytest.param(4, {}, {}, 2, "outer", 3, "warm-up, step 3", id="cfg, four ranks, two of them idle"),
        pytest.param(2, {}, UNGUIDED, 1, "outer", 3, "warm-up, step 3", id="cfg without guidance"),
        pytest.param(2, {}, UNGUIDED | TWO, 1, "outer", 3, "warm-up, step 3", id="cfg without guidance, two images"),
        pytest.param(2, SERIAL, {}, 1, "outer", 3, "warm-up, step 3", id="serial"),
        pytest.param(4, SERIAL, {}, 2, "outer", 7, "warm-up, step 7", id="serial, four ranks, last step"),
        pytest.param(2, CACHED, {}, 0, "outer", 1, "warm-up, step 1", id="hybrid, before cached steps"),
        pytest.param(2, CACHED, {}, 1, "outer", 4, "parallel, step 4", id="hybrid, between cached steps"),
        pytest.param(4, CACHED, TWO, 3, "outer", 4, "parallel, step 4", id="hybrid, four ranks"),
        pytest.param(2, REUSE, {}, 1, "outer", 3, "parallel, step 3", id="reuse step"),
        pytest.param(4, REUSE, TWO, 2, "outer", 5, "parallel, step 5", id="reuse step, four ranks"),
        pytest.param(2, PUBLISHED, {}, 0, "outer", 1, "warm-up, step 1", id="published, full step"),
        pytest.param(2, PUBLISHED, {}, 1, "outer", 3, "parallel, step 3", id="pipelined, outer stage"),
        pytest.param(2, PUBLISHED, {}, 1, "outer", 5, "parallel, step 5", id="pipelined, outer stage, last step"),
        # What the inner stage makes of step 3 is sent in step 4.
        pytest.param(2, PUBLISHED, {}, 0, "inner", 3, "parallel, step 4", id="pipelined, inner stage"),
    ],
)
def test_every_rank_names_the_rank_and_the_step(
    ranks: int, config: dict[str, Any], changes: dict[str, Any], faulty: int, place: str, step: int, where: str
) -> None:
    results = run_ranks(run_with_nan, ranks, config, changes, faulty, place, step)
    for outcome, again in results:
        assert outcome.error == "RankError", outcome
        assert outcome.message == (
            f"rank {faulty} predicted NaN or infinity in {where}; if the network runs in float16, "
            "try bfloat16 or float32"
        )
        assert outcome.seconds < QUICK
        assert torch.equal(again, results[0][1])
        assert again.isfinite().all()


def run_with_nan(
    config: dict[str, Any], changes: dict[str, Any], faulty: int, place: str, step: int
) -> tuple[Outcome, torch.Tensor]:
    """How a run ends in which one rank's network answers NaN in one step, and the image of the next one."""
    pipe = build("sd3")
    hooks: list[Any] = []

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        while hooks:
            hooks.pop().remove()
        return tuple(tensor * torch.nan for tensor in output) if isinstance(output, tuple) else output * torch.nan

    def arm(_: Any = None) -> None:
        if rank() == faulty:
            hooks.append(parts("sd3", pipe)[place].register_forward_hook(spoil))

    parallel = parallelize(pipe, ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **config))
    changes = STEPS | changes
    if step == 0:
        arm()
    outcome = attempt(lambda: generate(parallel, "sd3", **changes, callback_on_step_end=callback_at(step - 1, arm)))
    return outcome, generate(parallel, "sd3", **changes)


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize(("config", "step"), [({}, 1), (SERIAL, 1), (REUSE, 2)], ids=["cfg", "serial", "reuse"])
def test_an_error_of_another_rank_in_the_same_step_leaves_nobody_waiting(
    ranks: int, config: dict[str, Any], step: int
) -> None:
    """One rank answers NaN, and another fails before it has read of it."""
    for number, outcome in enumerate(run_ranks(run_with_nan_and_fault, ranks, config, step)):
        if number == 1:
            assert (outcome.error, outcome.message) == ("Planted", "scheduler")
        else:
            assert outcome.error == "RankError", outcome
            assert outcome.message.startswith("rank 0 predicted NaN or infinity in ")
        assert outcome.seconds < QUICK


def run_with_nan_and_fault(config: dict[str, Any], step: int) -> Outcome:
    pipe = build("sd3")

    def spoil(module: Any, inputs: Any, output: Any) -> Any:
        return output * torch.nan

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise Planted("scheduler")

    def arm(_: Any) -> None:
        if rank() == 0:
            parts("sd3", pipe)["outer"].register_forward_hook(spoil)
        elif rank() == 1:
            pipe.scheduler.step = fail

    parallel = parallelize(pipe, ParallelConfig(timeout=GROUP_TIMEOUT, **config))
    return attempt(lambda: generate(parallel, "sd3", **STEPS, **TWO, callback_on_step_end=callback_at(step - 1, arm)))
