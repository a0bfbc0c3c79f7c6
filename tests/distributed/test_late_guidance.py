"""Guidance that begins in the middle of a run on real ranks, which open their messages anew there, or fail together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from hybridiff import ParallelConfig, parallelize
from support.jobs import Generated, Outcome, attempt, rank, told_alike
from support.pipelines import build, generate
from support.ranks import run_ranks
from zoo import Specimen, run
from zoo.modular import modular_sdxl

pytestmark = pytest.mark.distributed

TEXTS = ["prompt_embeds", "pooled_prompt_embeds"]
CONFIGS: dict[str, dict[str, Any]] = {
    "cfg": {"strategy": "cfg"},
    "cached": {"strategy": "hybrid", "full_steps": "0,2,4,6-7"},
    "promise": {"strategy": "hybrid", "fidelity": 30.0},
}


def callback(fail_at: int = -1) -> Callable[..., dict[str, Any]]:
    """Guidance begins at step 3 and ends at step 6; or the last rank fails at the end of a step."""

    def switch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == fail_at and rank() == 1:
            raise ValueError("spoiled")
        texts = {name: tensors[name] for name in TEXTS}
        if step == 2:
            pipe._guidance_scale = 5.0
            return tensors | {name: torch.cat([text.flip(-1), text]) for name, text in texts.items()}
        if step == 5:
            pipe._guidance_scale = 1.0
            return tensors | {name: text.chunk(2)[1] for name, text in texts.items()}
        return tensors

    return switch


def known(fail_at: int = -1, **config: Any) -> Generated:
    changes = {"callback_on_step_end": callback(fail_at), "callback_on_step_end_tensor_inputs": ["latents", *TEXTS]}
    with parallelize(build("sd3"), ParallelConfig(outputs="all", **config)) as parallel:
        latents = generate(parallel, "sd3", guidance_scale=1.0, num_inference_steps=8, **changes)
        assert parallel.report is not None
        return Generated(latents, parallel.report.to_dict())


def guider() -> Specimen:
    build_it = lambda: modular_sdxl(ClassifierFreeGuidance(guidance_scale=5.0, start=0.25, stop=0.8))  # noqa: E731
    call = {"prompt": "a red ring", "negative_prompt": "blurred", "height": 32, "width": 32}
    return Specimen("interval", build_it, lambda: call, "guider", "latents")


def replayed(fail_at: int = -1, **config: Any) -> Generated:
    """The same with a guider, whose calls are watched and replayed; a rank fails in an evaluation of the network."""
    specimen, calls = guider(), []
    pipe = specimen.build()

    def spoil(*_: Any) -> None:
        calls.append(1)
        if len(calls) == fail_at and rank() == 1:
            raise ValueError("spoiled")

    pipe.unet.conv_in.register_forward_hook(spoil)
    with parallelize(pipe, ParallelConfig(outputs="all", **config)) as parallel:
        latents = run(specimen, parallel, steps=8)
        assert parallel.report is not None
        return Generated(latents, parallel.report.to_dict())


JOBS = {"known": known, "replayed": replayed}


def generate_all(**config: Any) -> dict[tuple[str, str], Generated]:
    return {(job, name): JOBS[job](**CONFIGS[name], **config) for job in JOBS for name in CONFIGS}


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_equal_their_simulation(ranks: int) -> None:
    simulated = generate_all(simulate=True, devices=ranks)
    for generated in run_ranks(generate_all, ranks):
        for job, expected in simulated.items():
            assert torch.equal(generated[job].latents, expected.latents), job
            assert told_alike(generated[job]) == told_alike(expected)
            assert {step["branches"] for step in generated[job].report["steps"]} == {1, 2}


def fail_everywhere() -> list[tuple[str, str, int, Outcome]]:
    """Failures at every turn: before guidance begins, where it does, and after it."""
    tried = [("known", step) for step in range(8)] + [("replayed", call) for call in range(1, 10)]
    return [
        (job, name, at, attempt(lambda job=job, name=name, at=at: JOBS[job](at, **CONFIGS[name])))  # type: ignore[misc]
        for job, at in tried
        for name in ("cfg", "cached")
        if (job, name, at) != ("replayed", "cached", 9)  # there are fewer evaluations
    ]


def test_a_rank_that_fails_at_any_turn_is_heard() -> None:
    first, second = run_ranks(fail_everywhere, 2)
    for (*case, other), (*_, own) in zip(first, second, strict=True):
        assert (own.error, own.message) == ("ValueError", "spoiled"), case
        assert other.error == "RankError", (case, other)
        assert "rank 1 failed in" in other.message, case
        assert "spoiled" in other.message, case
