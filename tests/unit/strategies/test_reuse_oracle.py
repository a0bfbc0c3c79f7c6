"""Reuse, the guided pipeline and both in turn computed by hand, layer by layer and without hooks.

The strategies draw the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.denoiser.adapters import sd3 as dit
from hybridiff.denoiser.split import Cut
from support.by_hand import Inputs, TransformerByHand, UnetByHand, level_cut, transformer_inputs, unet_inputs
from support.pipelines import build, draw

STEPS, TAU1, TAU2 = 12, 2, 9
FULL = {3: {0, 1, 2, 5, 8, 10, 11}, 6: {0, 1, 2, 8, 10, 11}}
"""Steps up to tau1, after tau2, and some of those between, by their distance."""


class ScheduleByHand:
    """Answers a generation's evaluations, both branches in one call.

    Args:
        parts: The network in two stages.
        inputs_of: Splits a call into its branches.
        linear: Follow the latest two inner results, not only hold the latest.
        interval: Distance of full steps.
    """

    def __init__(
        self, parts: Any, inputs_of: Callable[..., tuple[Inputs, Inputs]], linear: bool, interval: int
    ) -> None:
        self.full = FULL[interval]
        self.parts = parts
        self.inputs_of = inputs_of
        self.linear = linear
        self.adds = isinstance(parts, TransformerByHand)  # what is carried over is what the inner blocks add
        self.step = 0
        self.inner: list[list[tuple[int, Any]]] = [[], []]  # a branch: the steps and inner results so far

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor]:
        branches = self.inputs_of(*args, **kwargs)
        prediction = self.full_step(*branches) if self.step in self.full else self.other_step(*branches)
        self.step += 1
        return (prediction,)

    def full_step(self, *branches: Inputs) -> torch.Tensor:
        return torch.cat([self.whole(branch, inputs) for branch, inputs in enumerate(branches)])

    def other_step(self, *branches: Inputs) -> torch.Tensor:
        raise NotImplementedError

    def reuse_step(self, *branches: Inputs) -> torch.Tensor:
        """Each branch goes on with its own inner results of the steps before."""
        return torch.cat([self.outer(branch, inputs)[1] for branch, inputs in enumerate(branches)])

    def whole(self, branch: int, inputs: Inputs) -> torch.Tensor:
        down, skips = self.parts.begin(inputs)
        up = self.parts.middle(inputs, down)
        self.inner[branch].append((self.step, self.kept(down, up)))
        return self.parts.end(inputs, up, skips)

    def outer(self, branch: int, inputs: Inputs) -> tuple[Any, torch.Tensor]:
        """The boundary, and the prediction on a forecast of the inner result."""
        down, skips = self.parts.begin(inputs)
        kept = self.forecast(self.inner[branch])
        up = tuple(d + k for d, k in zip(down, kept, strict=True)) if self.adds else kept
        return down, self.parts.end(inputs, up, skips)

    def kept(self, down: Any, up: Any) -> Any:
        return tuple(u - d for u, d in zip(up, down, strict=True)) if self.adds else up

    def forecast(self, seen: list[tuple[int, Any]]) -> Any:
        if not self.linear or len(seen) == 1:
            return seen[-1][1]
        (before, first), (latest, second) = seen[-2:]
        ahead = (self.step - before) / (latest - before)
        if isinstance(first, tuple):
            return tuple(f * (1 - ahead) + s * ahead for f, s in zip(first, second, strict=True))
        return first * (1 - ahead) + second * ahead


class ReuseByHand(ScheduleByHand):
    """Both branches run the outer stage alone."""

    def other_step(self, *branches: Inputs) -> torch.Tensor:
        return self.reuse_step(*branches)


class CarryByHand(ScheduleByHand):
    """The conditional branch alone, on its inner results up to the step before; the difference is held or followed."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.differences: list[tuple[int, torch.Tensor]] = []
        self.underway: tuple[int, Any] | None = None  # made beside the outer stage; arrives in the next pipelined step

    def full_step(self, *branches: Inputs) -> torch.Tensor:
        self.underway = None  # a full step does not wait for it
        prediction = super().full_step(*branches)
        unconditional, conditional = prediction.chunk(2)
        self.differences.append((self.step, conditional - unconditional))
        return prediction

    def other_step(self, *branches: Inputs) -> torch.Tensor:
        if self.underway is not None:
            self.inner[1].append(self.underway)
        down, conditional = self.outer(1, branches[1])
        self.underway = (self.step, self.kept(down, self.parts.middle(branches[1], down)))
        latest = self.differences[-1]
        earlier = [seen for seen in self.differences if latest[0] - seen[0] >= 2]  # slopes between near ones mislead
        return torch.cat([conditional - self.forecast([*earlier[-1:], latest]), conditional])


class MixedByHand(CarryByHand):
    """In turn the conditional branch through both stages, and the outer stage alone on both branches."""

    def other_step(self, *branches: Inputs) -> torch.Tensor:
        distance = self.step - max(step for step in self.full if step < self.step)
        return super().other_step(*branches) if distance % 2 else self.reuse_step(*branches)


CASES = [
    pytest.param("sdxl", "ddim", lambda network: UnetByHand(network, 1), {}, id="sdxl"),
    pytest.param("sdxl", "euler", lambda network: UnetByHand(network, 2), {"num_images_per_prompt": 2}, id="sdxl two"),
    pytest.param("sd15", "dpmsolver++", lambda network: UnetByHand(network, 2), {}, id="sd15"),
    pytest.param("sd3", "flow-euler", lambda network: TransformerByHand(network, 1, 2), {}, id="sd3"),
    pytest.param("sd3.5", "flow-euler", lambda network: TransformerByHand(network, 1, 1), {}, id="sd3.5"),
]


@pytest.mark.parametrize("forecast", ["hold", "linear"])
@pytest.mark.parametrize(("name", "scheduler", "parts_of", "changes"), CASES)
@pytest.mark.parametrize(
    ("by_hand", "config", "interval"),
    [
        pytest.param(ReuseByHand, {"strategy": "reuse"}, 3, id="reuse"),
        pytest.param(CarryByHand, {"strategy": "hybrid", "switching": "fixed", "between": "pipelined"}, 3, id="carry"),
        pytest.param(MixedByHand, {"strategy": "hybrid", "switching": "fixed", "between": "mixed"}, 6, id="mixed"),
    ],
)
def test_a_generation_by_hand(
    by_hand: type[ScheduleByHand],
    config: dict[str, Any],
    interval: int,
    name: str,
    scheduler: str,
    parts_of: Callable[[Any], Any],
    changes: dict[str, Any],
    forecast: str,
) -> None:
    pipe = build(name, scheduler)
    network = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    parts = parts_of(network)
    inputs_of = unet_inputs if hasattr(pipe, "unet") else transformer_inputs
    network.forward = by_hand(parts, inputs_of, forecast == "linear", interval)
    expected = draw(pipe, name, num_inference_steps=STEPS, **changes)

    settings = {"tau1": TAU1, "tau2": TAU2, "full_interval": interval, "forecast": forecast, "carry": forecast}
    fresh = build(name, scheduler)
    cut = cut_of(parts, fresh.unet if hasattr(fresh, "unet") else fresh.transformer)
    with parallelize(fresh, ParallelConfig(simulate=True, cut=cut, **settings, **config)) as parallel:
        drawn = draw(parallel, name, num_inference_steps=STEPS, **changes)
        assert parallel.report is not None
        assert {step.index for step in parallel.report.steps if step.kind.value == "full"} == FULL[interval]
    # Held results are the same tensors; a weighted sum may round otherwise.
    assert (drawn - expected).abs().max() <= (0.0 if forecast == "hold" else 1e-4) * expected.abs().max()


def cut_of(parts: Any, network: Any) -> int:
    if isinstance(parts, UnetByHand):
        return level_cut(network, parts.levels)
    return dit.list_cuts(network).index(Cut(parts.first - 1, parts.last))
