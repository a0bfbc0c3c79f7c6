"""Guidance that begins in the middle of a run, or comes in an interval: learned there, and shared from then on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from hybridiff import ParallelPipeline, load_pipeline
from hybridiff.strategies.switching import SwitchingStrategy
from support.oracles import one_part_after_another, relative_difference
from support.pipelines import build, generate
from support.simulated import report_of, simulate
from zoo import ZOO, Specimen, run
from zoo.modular import modular_sdxl, modular_wan

STEPS = 8
TEXTS = ["prompt_embeds", "pooled_prompt_embeds"]
FULL_STEPS = "0,2,4,6-7"


def switching(*steps: int) -> Callable[..., dict[str, Any]]:
    """A callback by which guidance goes on at the first of these steps, off at the second, and so on."""

    def switch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step + 1 not in steps:
            return tensors
        turns_on = steps.index(step + 1) % 2 == 0
        pipe._guidance_scale = 5.0 if turns_on else 1.0
        texts = {name: tensors[name] for name in TEXTS}
        changed = {
            name: torch.cat([text.flip(-1), text]) if turns_on else text.chunk(2)[1] for name, text in texts.items()
        }
        return tensors | changed

    return switch


def switched(*steps: int, **changes: Any) -> dict[str, Any]:
    """Arguments of a call of SD3 whose guidance is off at first."""
    return {
        "guidance_scale": 1.0,
        "num_inference_steps": STEPS,
        "callback_on_step_end": switching(*steps),
        "callback_on_step_end_tensor_inputs": ["latents", *TEXTS],
    } | changes


def branches(parallel: ParallelPipeline) -> str:
    """Branches of each step, with a mark for each further evaluation."""
    return "".join(f"{step.branches}{'+' * step.extra_evaluations}" for step in report_of(parallel).steps)


def kinds(parallel: ParallelPipeline) -> str:
    return report_of(parallel).schedule


def evaluated_rows(layer: torch.nn.Module, generate: Callable[[], torch.Tensor]) -> tuple[list[int], torch.Tensor]:
    """Rows of each evaluation of the network, those of all ranks one after the other, and what was generated."""
    rows: list[int] = []
    hook = layer.register_forward_hook(lambda *given: rows.append(len(given[-1])))
    result = generate()
    hook.remove()
    return rows, result


SWITCHED = {(2,): "11222222", (2, 4): "11221111", (2, 4, 6): "11221122"}


@pytest.mark.parametrize("steps", SWITCHED, ids=str)
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("devices", [2, 3])
@pytest.mark.parametrize(
    "config", [{"strategy": "cfg"}, {"strategy": "hybrid", "quality": "exact"}], ids=["cfg", "hybrid"]
)
def test_a_known_pipeline(steps: tuple[int, ...], images: int, devices: int, config: dict[str, Any]) -> None:
    changes = switched(*steps, num_images_per_prompt=images)
    parallel = simulate(build("sd3"), devices=devices, **config)
    assert relative_difference(generate(parallel, "sd3", **changes), generate(build("sd3"), "sd3", **changes)) < 1e-5
    assert branches(parallel) == SWITCHED[steps]
    assert [step.discrepancy is not None for step in report_of(parallel).steps] == [n == "2" for n in SWITCHED[steps]]
    assert "guidance began at step 2: the steps before had 1 of 2 branches" in report_of(parallel).notes
    assert not [note for note in report_of(parallel).notes if "guidance is off" in note]


def test_each_rank_evaluates_its_rows_once_guidance_has_begun() -> None:
    pipe = build("sd3")
    parallel = simulate(pipe)
    rows, result = evaluated_rows(pipe.transformer.proj_out, lambda: generate(parallel, "sd3", **switched(2, 6)))
    assert rows == [1] * 2 + [1, 1] * 4 + [1] * 2
    assert report_of(parallel).ideal_speedup == pytest.approx((4 + 2 * 4) / 8)
    with one_part_after_another(pipe := build("sd3")):
        assert torch.equal(result, generate(pipe, "sd3", **switched(2, 6)))


def test_cached_steps_before_and_after() -> None:
    parallel, stock = simulate(build("sd3"), "hybrid", full_steps=FULL_STEPS), build("sd3")
    assert relative_difference(generate(parallel, "sd3", **switched(2)), generate(stock, "sd3", **switched(2))) < 0.1
    assert (kinds(parallel), branches(parallel)) == ("fcfcfcff", "11222222")
    assert report_of(parallel).ideal_speedup == pytest.approx((2 + 2 * 6) / 5)


def test_what_cached_steps_left_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first step with guidance: without it the image is much further from that of one device."""

    def generated(**config: Any) -> torch.Tensor:
        pipe = load_pipeline("tiny-sd3")
        pipe.set_progress_bar_config(disable=True)
        changes = switched(8, num_inference_steps=20, max_sequence_length=16, output_type="latent")
        changes |= {"prompt": "a red ring on a white background", "generator": torch.Generator().manual_seed(0)}
        return (simulate(pipe, **config) if config else pipe)(**changes).images  # type: ignore[no-any-return]

    expected = generated()
    config: dict[str, Any] = {"strategy": "hybrid", "full_steps": "0-3,8-19"}
    ours = relative_difference(generated(**config), expected)
    monkeypatch.setattr(SwitchingStrategy, "hand_over", lambda self, successor, step, prediction, branches: prediction)
    assert 0 < ours < 0.7 * relative_difference(generated(**config), expected)


def guided_between(make: Callable[[Any], Any], name: str, start: float, stop: float) -> Specimen:
    """A specimen of the zoo with a guider that is on in a part of the run only."""
    own = ZOO[name]
    build = lambda: make(ClassifierFreeGuidance(guidance_scale=5.0, start=start, stop=stop))  # noqa: E731
    return Specimen(f"{name}:interval", build, own.call, own.layout, own.output, latent=own.latent)


SDXL = modular_sdxl, "StableDiffusionXLModularPipeline"
WAN = modular_wan, "WanModularPipeline:zero-star"


@pytest.mark.parametrize("of", [SDXL, WAN], ids=["SDXL", "Wan"])
@pytest.mark.parametrize(
    ("start", "stop", "expected"),
    [(0.25, 1.0, "111+22222"), (0.0, 0.5, "22222111"), (0.25, 0.6, "111+22111"), (0.9, 1.0, "11111111+")],
)
def test_a_guider(of: tuple[Any, str], start: float, stop: float, expected: str) -> None:
    """A further call shows that guidance begins, and the step after it how: from then on all branches are shared."""
    specimen = guided_between(*of, start, stop)
    stock = run(specimen, specimen.build(), steps=STEPS)
    exact: list[dict[str, Any]] = [{"strategy": "cfg"}, {"strategy": "hybrid", "quality": "exact"}]
    for config in exact:
        parallel = simulate(specimen.build(), **config)
        assert torch.equal(run(specimen, parallel, steps=STEPS), stock)
        assert branches(parallel) == expected
        began = [f"guidance began at step {expected.find('+') - 1}" in note for note in report_of(parallel).notes]
        assert any(began) == ("+" in expected)
    parallel = simulate(specimen.build(), "hybrid", full_steps=FULL_STEPS)
    assert relative_difference(run(specimen, parallel, steps=STEPS), stock) < 0.2
    assert branches(parallel) == expected


def test_a_guider_that_comes_back() -> None:
    specimen = ZOO["WanPipeline"]

    def switch(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = {0: 1.0, 3: 5.0}.get(step, pipe._guidance_scale)
        return tensors

    changes: dict[str, Any] = {"callback_on_step_end": switch, "steps": STEPS}
    parallel = simulate(specimen.build())
    assert torch.equal(run(specimen, parallel, **changes), run(specimen, specimen.build(), **changes))
    assert branches(parallel) == "22111+222"
    hybrid = simulate(specimen.build(), "hybrid", full_steps="0,2,4,6,8,10,12-13")
    changes["steps"] = 14
    stock = run(specimen, specimen.build(), **changes)
    assert relative_difference(run(specimen, hybrid, **changes), stock) < 0.1
    assert (kinds(hybrid), branches(hybrid)) == ("fcfffffcfcfcff", "22111+222222222")


def begin_batched(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step != 1:
        return tensors
    pipe._guidance_scale = 5.0
    text = tensors["prompt_embeds"]
    return tensors | {"prompt_embeds": torch.cat([text.flip(-1), text])}


def test_a_batch_that_is_watched() -> None:
    specimen = ZOO["AnimateDiffPipeline"]
    changes: dict[str, Any] = {"callback_on_step_end": begin_batched, "guidance_scale": 1.0, "steps": STEPS}
    changes["callback_on_step_end_tensor_inputs"] = ["latents", "prompt_embeds"]
    stock = run(specimen, specimen.build(), **changes)
    pipe = specimen.build()
    parallel = simulate(pipe)
    frames, result = evaluated_rows(pipe.unet.conv_out, lambda: run(specimen, parallel, **changes))
    assert relative_difference(result, stock) < 1e-5
    assert branches(parallel) == "11222222"
    assert frames == [4, 4, 8, 4, 4, *[4, 4] * 5], "two films alone, two watched and tried apart, the others shared"


def test_a_call_after_one_with_late_guidance_begins_as_it_should() -> None:
    parallel = simulate(build("sd3"))
    for changes in (switched(2), {"num_inference_steps": STEPS}, switched(2), {"guidance_scale": 1.0}):
        stock = generate(build("sd3"), "sd3", **changes)
        assert relative_difference(generate(parallel, "sd3", **changes), stock) < 1e-5


def test_a_promise_is_kept_over_all_steps() -> None:
    """What was spent before guidance began is no longer there for the steps after it."""
    changes = switched(12, num_inference_steps=30)
    parallel = simulate(build("sd3"), "hybrid", fidelity=30.0)
    result = generate(parallel, "sd3", **changes)
    assert torch.isfinite(result).all()
    told, steps = report_of(parallel).fidelity, report_of(parallel).steps
    before = [step.estimated for step in steps[:12] if step.estimated is not None]
    assert min(before) < 100.0, "there were cached steps"
    assert told["promised"] == 30.0
    assert told["estimated"] <= min(before)
