"""Groups of ranks that share pictures: made where all are heard, given up by all alike, and agreed on before a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.sharding import vae
from support.failing import GROUP_TIMEOUT, QUICK, Planted
from support.jobs import Outcome, attempt, rank
from support.pipelines import build, call_arguments, generate
from support.ranks import run_ranks

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
            assert (outcome.error, outcome.message) == ("RankError", f"rank {faulty} failed in {where}: Planted: {cause}")
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
