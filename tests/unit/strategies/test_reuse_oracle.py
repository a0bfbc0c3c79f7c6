"""Reuse steps computed by hand, layer by layer and without hooks: `hybrid` generates the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.config import parse_steps
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
from support.schedules import split_at

STEPS = 12
HELD = "0,5-11"
"""One full step, and reuse steps after it: there is nothing yet to extrapolate by."""
FOLLOWED = ["0-2,5,8,10-11", "0-2,8,10-11"]


class ReuseByHand:
    """Answers a generation's evaluations, all branches in one call.

    Args:
        parts: The network in two stages.
        inputs_of: Splits a call into its branches, one or two.
        full: The full steps.
    """

    def __init__(self, parts: Any, inputs_of: Callable[..., tuple[Inputs, ...]], full: list[int]) -> None:
        self.parts = parts
        self.forward = parts.network.forward
        self.inputs_of = inputs_of
        self.full = full
        self.adds = isinstance(parts, TransformerByHand)  # what is carried over is what the inner blocks add
        self.step = 0
        self.inner: list[list[tuple[int, Any]]] = [[], []]  # a branch: the steps and inner results so far

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        if kwargs.get("skip_layers"):
            return self.forward(*args, **kwargs)  # type: ignore[no-any-return]
        answer = self.whole if self.step in self.full else self.outer
        branches = self.inputs_of(*args, **kwargs)
        prediction = torch.cat([answer(branch, inputs) for branch, inputs in enumerate(branches)])
        self.step += 1
        return (prediction,)

    def whole(self, branch: int, inputs: Inputs) -> torch.Tensor:
        down, skips = self.parts.begin(inputs)
        up = self.parts.middle(inputs, down)
        kept = tuple(u - d for u, d in zip(up, down, strict=True)) if self.adds else up
        self.inner[branch].append((self.step, kept))
        return self.parts.end(inputs, up, skips)

    def outer(self, branch: int, inputs: Inputs) -> torch.Tensor:
        """The branch goes on with its own inner results of the full steps before."""
        down, skips = self.parts.begin(inputs)
        kept = self.followed(self.inner[branch])
        up = tuple(d + k for d, k in zip(down, kept, strict=True)) if self.adds else kept
        return self.parts.end(inputs, up, skips)

    def followed(self, seen: list[tuple[int, Any]]) -> Any:
        """The straight line through the latest two inner results; the one there is where there is one."""
        if len(seen) == 1:
            return seen[-1][1]
        (before, first), (latest, second) = seen[-2:]
        ahead = (self.step - before) / (latest - before)
        if isinstance(first, tuple):
            return tuple(f * (1 - ahead) + s * ahead for f, s in zip(first, second, strict=True))
        return first * (1 - ahead) + second * ahead


def split_index(parts: Any, network: Any) -> int:
    if isinstance(parts, UnetByHand):
        return level_split(network, parts.levels)
    return block_split(network, parts.first - 1, parts.last)


@pytest.mark.parametrize("full", [HELD, *FOLLOWED])
@pytest.mark.parametrize(
    ("name", "scheduler", "parts_of", "changes"),
    [
        pytest.param("sdxl", "ddim", lambda network: UnetByHand(network, 1), {}, id="sdxl"),
        pytest.param("sdxl", "euler", lambda network: UnetByHand(network, 2), {"num_images_per_prompt": 2}, id="two"),
        pytest.param("sd15", "dpmsolver++", lambda network: UnetByHand(network, 2), {}, id="sd15"),
        pytest.param("sd3", "flow-euler", lambda network: TransformerByHand(network, 1, 2), {}, id="sd3"),
        pytest.param("sd3.5", "flow-euler", lambda network: TransformerByHand(network, 1, 1), {}, id="sd3.5"),
    ],
)
def test_a_generation_by_hand(
    name: str, scheduler: str, parts_of: Callable[[Any], Any], changes: dict[str, Any], full: str
) -> None:
    pipe = build(name, scheduler)
    network = denoiser_of(pipe)
    parts = parts_of(network)
    inputs_of = unet_inputs if hasattr(pipe, "unet") else transformer_inputs
    network.forward = ReuseByHand(parts, inputs_of, parse_steps(full))  # type: ignore[method-assign]
    expected = generate(pipe, name, num_inference_steps=STEPS, **changes)

    fresh = build(name, scheduler)
    where = split_at("reuse", split_index(parts, denoiser_of(fresh)))
    config = ParallelConfig("hybrid", step_kind="reuse", full_steps=full, calibration=where, simulate=True)
    with parallelize(fresh, config) as parallel:
        generated = generate(parallel, name, num_inference_steps=STEPS, **changes)
        assert parallel.report is not None
        kinds = [step.kind.value for step in parallel.report.steps]
    assert [step for step, kind in enumerate(kinds) if kind == "full"] == parse_steps(full)
    assert set(kinds) == {"full", "reuse"}
    # Held results are the same tensors; a weighted sum may round otherwise.
    assert (generated - expected).abs().max() <= (0.0 if full == HELD else 1e-4) * expected.abs().max()


def test_steps_of_skip_layer_guidance_are_full() -> None:
    """Of twelve steps 4 to 7, of which the schedule has one already."""
    changes = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.3, "skip_layer_guidance_stop": 0.65}
    full = sorted({*parse_steps(FOLLOWED[0]), 4, 5, 6, 7})
    pipe = build("sd3")
    by_hand = ReuseByHand(TransformerByHand(pipe.transformer, 1, 2), transformer_inputs, full)
    pipe.transformer.forward = by_hand
    expected = generate(pipe, "sd3", num_inference_steps=STEPS, **changes)
    where = split_at("reuse", block_split(build("sd3").transformer, 0, 2))
    config = ParallelConfig("hybrid", step_kind="reuse", full_steps=FOLLOWED[0], calibration=where, simulate=True)
    with parallelize(build("sd3"), config) as parallel:
        generated = generate(parallel, "sd3", num_inference_steps=STEPS, **changes)
        assert parallel.report is not None
        assert [step.index for step in parallel.report.steps if step.kind.value == "full"] == full
    assert (generated - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_what_is_followed_matters() -> None:
    """Otherwise the tests above would pass where results are held."""
    generated = []
    for full in (HELD, *FOLLOWED):
        config = ParallelConfig("hybrid", step_kind="reuse", full_steps=full, simulate=True)
        with parallelize(build("sd3"), config) as parallel:
            generated.append(generate(parallel, "sd3", num_inference_steps=STEPS))
    assert not torch.equal(generated[0], generated[1])
    assert not torch.equal(generated[1], generated[2])


@pytest.mark.parametrize("devices", [1, 2])
def test_one_branch_alone(devices: int) -> None:
    """Without guidance every rank has the only row."""
    pipe = build("sd3")
    pipe.transformer.forward = ReuseByHand(TransformerByHand(pipe.transformer, 1, 2), only_branch, parse_steps(HELD))
    expected = generate(pipe, "sd3", num_inference_steps=STEPS, guidance_scale=1.0)
    where = split_at("reuse", block_split(build("sd3").transformer, 0, 2))
    config = ParallelConfig(
        "hybrid", step_kind="reuse", full_steps=HELD, calibration=where, devices=devices, simulate=True
    )
    with parallelize(build("sd3"), config) as parallel:
        generated = generate(parallel, "sd3", num_inference_steps=STEPS, guidance_scale=1.0)
        assert parallel.report is not None
        assert parallel.report.kinds == {"full": 8, "reuse": 4}
    assert torch.equal(generated, expected)


def only_branch(
    hidden_states: Any, timestep: Any, encoder_hidden_states: Any, pooled_projections: Any, **_: Any
) -> tuple[Inputs]:
    inputs = {"sample": hidden_states, "timestep": timestep, "text": encoder_hidden_states}
    return (inputs | {"pooled": pooled_projections},)
