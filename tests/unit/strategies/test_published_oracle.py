"""The published schedule computed by hand, layer by layer and without hooks: `published` does the same, bit for bit.

Nothing here goes through the code under test: the oracles call the networks' parts one after the other, as the
forward of the network does, and keep by themselves what is stale.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from support.by_hand import (
    Inputs,
    TransformerByHand,
    UnetByHand,
    block_split,
    level_split,
    transformer_inputs,
    unet_inputs,
)
from support.pipelines import build, denoiser_of, generate
from support.schedules import capped

STEPS, TAU1, PARALLEL_STEPS, SCALE = 10, 3, 4, 5.0


class PublishedSchedule:
    """Answers a generation's evaluations, both branches in one call, by the published schedule."""

    def __init__(self, parts: Any, inputs_of: Callable[..., tuple[Inputs, Inputs]], *full: int) -> None:
        self.parts = parts
        self.inputs_of = inputs_of
        self.whole = parts.network.forward
        self.full = full  # steps that are full whatever the schedule says
        self.step = 0
        self.pipelined: list[int] = []
        self.boundary: Any = None  # of the conditional branch, of the step before
        self.result: Any = None  # of the inner stage on the unconditional branch, of the step before

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        if kwargs.get("skip_layers"):
            return self.whole(*args, **kwargs)  # type: ignore[no-any-return]
        unconditional, conditional = self.inputs_of(*args, **kwargs)
        if TAU1 < self.step <= TAU1 + PARALLEL_STEPS and self.step not in self.full:
            prediction = self.pipelined_step(unconditional, conditional)
        else:
            prediction = self.full_step(unconditional, conditional)
        self.step += 1
        return (prediction,)

    def full_step(self, unconditional: Inputs, conditional: Inputs) -> torch.Tensor:
        boundary, skips = self.parts.begin(unconditional)
        self.result = self.parts.middle(unconditional, boundary)
        first = self.parts.end(unconditional, self.result, skips)
        self.boundary, skips = self.parts.begin(conditional)
        second = self.parts.end(conditional, self.parts.middle(conditional, self.boundary), skips)
        return torch.cat([first, second])

    def pipelined_step(self, unconditional: Inputs, conditional: Inputs) -> torch.Tensor:
        self.pipelined.append(self.step)
        result = self.parts.middle(unconditional, self.boundary)
        self.boundary, skips = self.parts.begin(conditional)
        prediction = self.parts.end(conditional, self.result, skips)
        self.result = result
        return torch.cat([prediction, prediction])


def generated_by_hand(name: str, scheduler: str, parts_of: Callable[[Any], Any], **changes: Any) -> torch.Tensor:
    """A stock pipeline whose denoiser is the schedule computed by hand."""
    pipe = build(name, scheduler)
    network = denoiser_of(pipe)
    schedule = PublishedSchedule(parts_of(network), unet_inputs if hasattr(pipe, "unet") else transformer_inputs)
    network.forward = schedule
    latents = generate(pipe, name, num_inference_steps=STEPS, guidance_scale=SCALE, **changes)
    assert schedule.step == STEPS
    assert schedule.pipelined == [4, 5, 6, 7]
    return latents


def generated_by_published(name: str, scheduler: str, split_point: int, **changes: Any) -> torch.Tensor:
    config = capped(STEPS, TAU1, PARALLEL_STEPS, split_point)
    with parallelize(build(name, scheduler), ParallelConfig(simulate=True, **config)) as parallel:
        latents = generate(parallel, name, num_inference_steps=STEPS, guidance_scale=SCALE, **changes)
        assert parallel.report is not None
        assert (parallel.report.tau1, parallel.report.tau2) == (TAU1, TAU1 + PARALLEL_STEPS)
    return latents


@pytest.mark.parametrize(
    ("name", "levels", "scheduler", "changes"),
    [
        ("sdxl", 1, "ddim", {}),
        ("sdxl", 2, "ddim", {"num_images_per_prompt": 2}),
        ("sdxl", 1, "dpmsolver++", {}),
        ("sd15", 1, "ddim", {"num_images_per_prompt": 2}),
        ("sd15", 2, "euler", {}),
        ("sdxl two levels", 1, "ddim", {"guidance_rescale": 0.5}),
    ],
)
def test_a_unet_generation(name: str, levels: int, scheduler: str, changes: dict[str, Any]) -> None:
    expected = generated_by_hand(name, scheduler, lambda network: UnetByHand(network, levels), **changes)
    split_point = level_split(build(name).unet, levels)
    assert torch.equal(generated_by_published(name, scheduler, split_point, **changes), expected)


@pytest.mark.parametrize("changes", [{}, {"num_images_per_prompt": 2}], ids=["one image", "two images"])
@pytest.mark.parametrize("name", ["sd3", "sd3.5"])
@pytest.mark.parametrize(("entry", "exit_"), [(0, 1), (0, 2), (1, 2)])
def test_a_transformer_generation(name: str, entry: int, exit_: int, changes: dict[str, Any]) -> None:
    expected = generated_by_hand(
        name, "flow-euler", lambda network: TransformerByHand(network, entry + 1, exit_), **changes
    )
    split_point = block_split(build(name).transformer, entry, exit_)
    assert torch.equal(generated_by_published(name, "flow-euler", split_point, **changes), expected)


@pytest.mark.parametrize(
    ("start", "stop", "extra"), [(0.45, 0.65, (5, 6)), (0.0, 0.55, (1, 2, 3, 4, 5)), (0.65, 1.0, (7, 8, 9))]
)
def test_steps_of_skip_layer_guidance_are_full(start: float, stop: float, extra: tuple[int, ...]) -> None:
    """Also in the middle of the parallel phase, whose stages then go on from where the full step left them."""
    name, where = "sd3", "skip_layer_guidance"
    changes = {"skip_guidance_layers": [1], f"{where}_start": start, f"{where}_stop": stop}
    pipe = build(name)
    network = denoiser_of(pipe)
    schedule = PublishedSchedule(TransformerByHand(network, 1, 2), transformer_inputs, *extra)
    network.forward = schedule  # type: ignore[method-assign]
    expected = generate(pipe, name, num_inference_steps=STEPS, guidance_scale=SCALE, **changes)
    assert schedule.pipelined == [step for step in (4, 5, 6, 7) if step not in extra]
    split_point = block_split(build(name).transformer, 0, 2)
    assert torch.equal(generated_by_published(name, "flow-euler", split_point, **changes), expected)


def test_ddim_with_the_sampling_loop_by_hand() -> None:
    """The same, with guidance and DDIM (eta 0) by their formulas in the place of the pipeline and its scheduler."""
    name, split_point = "sd15", level_split(build("sd15").unet, 1)
    pipe = build(name, "ddim")
    schedule = PublishedSchedule(UnetByHand(pipe.unet, 1), unet_inputs)
    with torch.no_grad():
        positive, negative = pipe.encode_prompt("a red ring", "cpu", 1, True, negative_prompt="blurred")
        pipe.scheduler.set_timesteps(STEPS)
        alphas = pipe.scheduler.alphas_cumprod
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        for t in pipe.scheduler.timesteps:
            (both,) = schedule(torch.cat([latents] * 2), t, encoder_hidden_states=torch.cat([negative, positive]))
            unconditional, conditional = both.chunk(2)
            noise = unconditional + SCALE * (conditional - unconditional)
            before = t - pipe.scheduler.config.num_train_timesteps // STEPS
            alpha, next_alpha = alphas[t], alphas[before] if before >= 0 else pipe.scheduler.final_alpha_cumprod
            clean = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
            latents = next_alpha**0.5 * clean + (1 - next_alpha) ** 0.5 * noise
    generated = generated_by_published(name, "ddim", split_point)
    assert (generated - latents).abs().max() <= 1e-5 * latents.abs().max()  # the scheduler groups its sums otherwise


def test_flow_matching_with_the_sampling_loop_by_hand() -> None:
    name = "sd3"
    pipe = build(name, "flow-euler")
    schedule = PublishedSchedule(TransformerByHand(pipe.transformer, 1, 2), transformer_inputs)
    with torch.no_grad():
        texts = pipe.encode_prompt(
            "a red ring", None, None, negative_prompt="blurred", max_sequence_length=12, device="cpu"
        )
        positive, negative, pooled, negative_pooled = texts
        pipe.scheduler.set_timesteps(STEPS)
        latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(3))
        for i, t in enumerate(pipe.scheduler.timesteps):
            (both,) = schedule(
                hidden_states=torch.cat([latents] * 2),
                timestep=t.expand(2),
                encoder_hidden_states=torch.cat([negative, positive]),
                pooled_projections=torch.cat([negative_pooled, pooled]),
            )
            unconditional, conditional = both.chunk(2)
            velocity = unconditional + SCALE * (conditional - unconditional)
            latents = latents + (pipe.scheduler.sigmas[i + 1] - pipe.scheduler.sigmas[i]) * velocity
    split_point = block_split(pipe.transformer, 0, 2)
    assert torch.equal(generated_by_published(name, "flow-euler", split_point), latents)


def test_the_oracle_is_the_whole_network_without_pipelined_steps() -> None:
    """A check on the oracles themselves."""
    random = torch.Generator().manual_seed(7)
    for name in ("sdxl", "sd15", "sd3.5"):
        pipe = build(name)
        seen: list[dict[str, Any]] = []
        network = denoiser_of(pipe)
        whole = network.forward

        def spy(*args: Any, seen: list[Any] = seen, whole: Any = whole, **kwargs: Any) -> Any:
            seen.append((args, kwargs))
            return whole(*args, **kwargs)

        network.forward = spy
        generate(pipe, name, num_inference_steps=1, generator=random)
        args, kwargs = seen[0]
        is_unet = hasattr(pipe, "unet")
        parts = UnetByHand(network, 1) if is_unet else TransformerByHand(network, 1, 2)
        with torch.no_grad():
            unconditional, conditional = (unet_inputs if is_unet else transformer_inputs)(*args, **kwargs)
            both = PublishedSchedule(parts, unet_inputs).full_step(unconditional, conditional)
            expected = whole(*args, **{**kwargs, "return_dict": False})[0]
        assert (both - expected).abs().max() <= 1e-5 * expected.abs().max()
