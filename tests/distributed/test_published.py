"""Contract 3: `published` on two ranks is their simulation in one process, bit for bit, whatever is generated."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, PublishedSettings, parallelize
from support.failing import GROUP_TIMEOUT
from support.jobs import Generated, Outcome, attempt, generate_parallel, generated_on_ranks, on_ranks, rank, told_alike
from support.networks import adapter_of
from support.pipelines import build, denoiser_of, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped, guidance_until, split_at

pytestmark = pytest.mark.distributed

TWO_PROMPTS = {"prompt": ["a red ring", "two blue cubes"], "negative_prompt": ["blurred", "dark"]}
SMALL = "sdxl two levels"


@pytest.mark.parametrize(
    ("name", "scheduler", "steps", "split_point", "changes"),
    [
        ("sdxl", "ddim", 10, 0, {}),
        ("sdxl", "euler", 10, 20, {"num_images_per_prompt": 2}),
        ("sdxl", "euler-ancestral", 10, 33, {}),
        ("sd15", "unipc", 10, 11, {}),
        ("sd15", "dpmsolver++", 4, 25, TWO_PROMPTS | {"num_images_per_prompt": 2}),
        (SMALL, "dpmsolver++", 50, 3, {}),
        (SMALL, "ddim", 100, 7, {}),
        (SMALL, "euler-ancestral", 10, 5, TWO_PROMPTS),
        ("sd3", "flow-euler", 4, 0, {}),
        ("sd3", "flow-euler", 50, 1, {"num_images_per_prompt": 2}),
        ("sd3", "flow-euler", 100, 2, {}),
        ("sd3.5", "flow-euler", 10, 1, TWO_PROMPTS | {"num_images_per_prompt": 2}),
    ],
)
def test_two_ranks_equal_their_simulation(
    name: str, scheduler: str, steps: int, split_point: int, changes: dict[str, Any]
) -> None:
    changes = changes | {"num_inference_steps": steps}
    config = capped(steps, steps // 4, steps // 2, split_point=split_point, scheduler=scheduler)
    generated = generated_on_ranks(2, name, changes, config, runs=2 if steps <= 10 else 1)
    simulated = generate_parallel(name, changes, simulate=True, **config)[0]
    assert torch.equal(generated.latents, simulated.latents)
    assert [told_alike(generated)[i] for i in (0, 1, 2, 4)] == [told_alike(simulated)[i] for i in (0, 1, 2, 4)]
    kinds = [step["kind"] for step in generated.report["steps"]]
    assert kinds.count("pipelined") == steps // 2
    assert kinds[steps // 4 + 1 :][: steps // 2] == ["pipelined"] * (steps // 2)


RULE = PublishedSettings(slope_threshold=0.5, slope_window=3, tau_cap=12, parallel_steps=6)
"""By which the slope decides, not the cap."""


@pytest.mark.parametrize("name", ["sd15", "sd3"])
def test_the_split_that_work_counts_for(name: str) -> None:
    """No two ranks measure the same times, so one measurement stands in all reports; and the slope decides alike."""
    changes, config = {"num_inference_steps": 20}, {"strategy": "published", "published": RULE}
    first, second = (runs[0] for runs in run_ranks(on_ranks, 2, name, changes, config))
    stages = first.report["stages"]
    assert stages == second.report["stages"]
    assert 0 < stages["outer"] < 1
    assert told_alike(first) == told_alike(second)
    assert first.report["tau1"] < 12

    network = denoiser_of(build(name))
    points = [(point.entry, point.exit) for point in adapter_of(network).split_points(network)]
    index = points.index((stages["point"]["entry"], stages["point"]["exit"]))
    for calibration in (
        None,
        split_at("pipelined", index),
        split_at("pipelined", len(points)),
    ):  # the last one not there
        simulated = generate_parallel(name, changes, simulate=True, calibration=calibration, **config)[0]
        assert torch.equal(first.latents, simulated.latents)
        assert torch.equal(second.latents, simulated.latents)


@pytest.mark.parametrize(("name", "dtype"), [(SMALL, torch.float16), ("sd3", torch.bfloat16)])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    changes, config = {"num_inference_steps": 10}, capped(10, 3, 4, split_point=1, dtype=dtype)
    generated = generated_on_ranks(2, name, changes, config)
    assert generated.latents.dtype == dtype
    assert torch.equal(generated.latents, generate_parallel(name, changes, simulate=True, **config)[0].latents)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("sd15", {}, id="one branch from the middle of the phase on"),
        pytest.param("sd3", {"num_images_per_prompt": 2}, id="one branch of two images"),
    ],
)
def test_guidance_that_ends_in_the_parallel_phase(name: str, changes: dict[str, Any]) -> None:
    ranks = run_ranks(generate_until_guidance_ends, 2, name, changes, False)
    simulated = generate_until_guidance_ends(name, changes, True)
    for generated in ranks:
        assert torch.equal(generated.latents, simulated.latents)
        assert told_alike(generated) == told_alike(simulated)
    assert [step["kind"] for step in simulated.report["steps"]] == ["full"] * 4 + ["pipelined"] * 2 + ["full"] * 4


def generate_until_guidance_ends(name: str, changes: dict[str, Any], simulate: bool) -> Generated:
    changes = changes | guidance_until(name, 5) | {"num_inference_steps": 10}
    return generate_parallel(name, changes, simulate=simulate, **capped(10, 3, 4, split_point=1))[0]


def test_steps_of_skip_layer_guidance_are_full() -> None:
    """The pipeline compares predictions of such a step with each other: all must be fresh."""
    changes: dict[str, Any] = {"skip_guidance_layers": [1], "num_inference_steps": 10}
    changes |= {"skip_layer_guidance_start": 0.35, "skip_layer_guidance_stop": 0.55}
    config = capped(10, 3, 4, split_point=1)
    generated = generated_on_ranks(2, "sd3", changes, config)
    assert torch.equal(generated.latents, generate_parallel("sd3", changes, simulate=True, **config)[0].latents)
    assert [step["kind"] for step in generated.report["steps"]] == ["full"] * 6 + ["pipelined"] * 2 + ["full"] * 2
    assert [step.get("extra_evaluations", 0) for step in generated.report["steps"]] == [0] * 4 + [1] * 2 + [0] * 4


@pytest.mark.parametrize("asking", [0, 1])
@pytest.mark.parametrize(
    ("last", "steps"),
    [
        pytest.param(2, 4, id="before the last full step, which is read at once"),
        pytest.param(3, 6, id="before the phase"),
        pytest.param(5, 8, id="within the phase"),
        pytest.param(6, 9, id="before its last step"),
        pytest.param(7, 9, id="at its last step"),
    ],
)
def test_an_interrupt_on_one_rank_stops_both_after_the_same_step(last: int, steps: int, asking: int) -> None:
    """Told in the next step; read with it where it is full, or else before the one after it."""
    results = run_ranks(run_with_interrupt, 2, last, asking)
    kept: list[torch.Tensor] = []

    def keep(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        kept.append(tensors["latents"].clone())
        return tensors

    changes = {"num_inference_steps": 10, "callback_on_step_end": keep}
    generate_parallel("sd3", changes, simulate=True, **capped(10, 3, 4, split_point=1))
    for interrupted, count, whole in results:
        assert count == steps <= last + 3
        assert torch.equal(interrupted, kept[steps - 1])
        assert torch.equal(whole, kept[9])


def run_with_interrupt(last: int, asking: int) -> Any:
    def interrupt(pipe: Any) -> None:
        pipe._interrupt = pipe._interrupt or rank() == asking

    changes = {"num_inference_steps": 10}
    parallel = parallelize(
        build("sd3"), ParallelConfig(outputs="all", timeout=GROUP_TIMEOUT, **capped(10, 3, 4, split_point=1))
    )
    interrupted = generate(parallel, "sd3", **changes, callback_on_step_end=callback_at(last, interrupt))
    assert parallel.report is not None
    return interrupted, len(parallel.report.steps), generate(parallel, "sd3", **changes)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a phase beyond the end": ({"parallel_steps": 9}, "lies beyond the last of 10 steps (9); lower one of them"),
    "no window": ({"slope_window": 0}, "slope_window must be at least 1, got 0"),
}


def test_bad_settings_are_refused_on_every_rank_before_any_network_runs() -> None:
    results = run_ranks(refusals, 2)
    for outcomes, calls in results:
        assert calls == 0
        for (_, words), outcome in zip(REFUSED.values(), outcomes, strict=True):
            assert outcome.error == "UsageError"
            assert words in outcome.message
        assert [outcome.message for outcome in outcomes] == [outcome.message for outcome in results[0][0]]


def refusals() -> tuple[list[Outcome], int]:
    calls: list[int] = []
    outcomes = []
    for settings, _ in REFUSED.values():
        pipe = build("sd3")
        for module in (denoiser_of(pipe), pipe.text_encoder):
            module.register_forward_pre_hook(lambda *_: calls.append(1))

        def call(pipe: Any = pipe, settings: dict[str, Any] = settings) -> None:
            config = ParallelConfig(strategy="published", published=PublishedSettings(**settings))
            with parallelize(pipe, config) as parallel:
                generate(parallel, "sd3", num_inference_steps=10)

        outcomes.append(attempt(call))
    return outcomes, len(calls)


def test_three_ranks_are_refused_on_all() -> None:
    for outcome in run_ranks(attempt_on_three, 3):
        assert outcome.error == "UsageError"
        assert outcome.message.startswith("strategy 'published' needs an even number of ranks, 2 at least, got 3; use ")


def attempt_on_three() -> Outcome:
    return attempt(lambda: parallelize(build("sd3"), ParallelConfig(strategy="published")))
