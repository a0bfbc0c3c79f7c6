"""What a pipeline's scheduler will make of predictions: foreseen on a copy of it, which draws the same noise."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch

from ..denoiser.evaluation import Evaluation
from ..denoiser.watch import AroundSteps, Step
from .chain import at_timestep, with_arguments
from .timesteps import Timesteps


class Foresight(AroundSteps):
    """Watches a scheduler as long as this context lasts, and foresees the denoiser calls of later steps.

    Args:
        scheduler: The pipeline's own.
        timesteps: Of each step.

    Attributes:
        step: The step that runs; told by the strategy.
        guided: What the scheduler was given in each step so far, (B, ...).
    """

    def __init__(self, scheduler: Any, timesteps: Timesteps) -> None:
        self.step = 0
        self.guided: dict[int, torch.Tensor] = {}
        self._timesteps, self._signature = timesteps, inspect.signature(scheduler.step)
        self._latents: torch.Tensor | None = None  # that it returned last
        self._further: dict[str, Any] = {}  # arguments of its step, generators among them
        super().__init__(scheduler, self._see)

    def forget(self, before: int) -> None:
        """Let go of what steps before one were given."""
        self.guided = {step: guided for step, guided in self.guided.items() if step >= before}

    def call(self, evaluation: Evaluation, guided: Sequence[torch.Tensor]) -> Evaluation:
        """The call that a pipeline makes once its scheduler has taken so many steps.

        Args:
            evaluation: The call of the step that runs.
            guided: What the scheduler is given in that step and those after it; none foresees the call itself.
        """
        assert self._latents is not None
        scheduler, latents, further = copy.deepcopy(self._scheduler), self._latents, _copied(self._further)
        on_device = [latents.device] if latents.device.type == "cuda" else []
        with torch.random.fork_rng(on_device):  # where no generator was given
            for ahead, prediction in enumerate(guided):
                timestep = self._timesteps.at(self.step + ahead)
                latents = _stepped(scheduler.step(prediction, timestep, latents, **further))
        timestep = self._timesteps.at(self.step + len(guided))
        sample = torch.cat([latents] * evaluation.branches)
        if hasattr(scheduler, "scale_model_input"):
            sample = scheduler.scale_model_input(sample, timestep)
        name = evaluation.calls[0].adapter.sample
        return at_timestep(with_arguments(evaluation, {name: sample}), timestep)

    def is_right(self, evaluation: Evaluation) -> bool:
        """Whether the call of the step that runs is what was to be expected: nothing but the scheduler made it."""
        expected, sample = self.call(evaluation, ()).sample, evaluation.sample
        return expected.shape == sample.shape and torch.equal(expected, sample)

    def _see(self, step: Step, *args: Any, **kwargs: Any) -> Any:
        """Take in a step of the scheduler."""
        result = step(*args, **kwargs)
        further = dict(self._signature.bind(*args, **kwargs).arguments)
        self.guided[self.step] = further.pop("model_output").clone()
        del further["timestep"], further["sample"]
        self._further, self._latents = further, _stepped(result)
        return result


def _stepped(result: Any) -> torch.Tensor:
    """The latents that a scheduler returned."""
    latents: torch.Tensor = result[0] if isinstance(result, tuple) else result.prev_sample
    return latents


def _copied(value: Any) -> Any:
    """Arguments with generators of their own, in the same state."""
    if isinstance(value, torch.Generator):
        return value.clone_state()
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    return value
