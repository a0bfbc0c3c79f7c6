"""What a scheduler makes of predictions: how far each one moves the sample."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

_NEGLIGIBLE = 1e-3
"""A step that moves the sample by less than this share of another cannot make up for it."""


@dataclass(frozen=True)
class Influence:
    """The influence of every prediction of a run on the samples after it.

    Schedulers are linear in the sample and the predictions, so a unit impulse in one prediction says it.

    Attributes:
        weights: A value a step: how far its prediction moves the sample that the network sees next, 1 on average.
        on_sample: `on_sample[i][j]` is the influence of the prediction of step j on the sample after step i, without
            the network's answers to it; empty where the scheduler is not linear.
    """

    weights: list[float]
    on_sample: list[list[float]]

    def share(self, earlier: int, step: int) -> float:
        """The change in the prediction of a step that moves the sample as a unit change in an earlier one did.

        0 where there is none: the influence is unknown, or the step moves too little.
        """
        if not self.on_sample:
            return 0.0
        wanted, own = self.on_sample[step][earlier], self.on_sample[step][step]
        return wanted / own if abs(own) > _NEGLIGIBLE * abs(wanted) else 0.0


def measure_influence(scheduler: Any, steps: int) -> Influence:
    """Run a copy of a scheduler on unit impulses: a few milliseconds, no network.

    Args:
        scheduler: Timesteps set, no step taken yet.
        steps: Number of steps of the run: its last timesteps.
    """
    responses = _responses(scheduler, steps)
    if responses is None:
        return Influence([1.0] * steps, [])
    moved = [abs(float(responses[i, i]) * _input_scale(scheduler, i + 1, steps)) for i in range(steps)]
    mean = sum(moved) / steps
    weights = [value / mean for value in moved] if mean > 0 else [1.0] * steps
    return Influence(weights, responses.tolist())


def _responses(scheduler: Any, steps: int) -> torch.Tensor | None:
    """(steps, steps): row i is the sample after step i, element j the one whose only impulse is in prediction j.

    None where a scheduler is not linear by its configuration, cannot be run alone, or a sample is not finite.
    """
    if any(scheduler.config.get(name) for name in ("thresholding", "clip_sample")):
        return None
    impulses = torch.eye(steps, dtype=torch.float64)
    try:
        # The same noise with and without the impulses: what schedulers add cancels.
        responses = _samples(scheduler, impulses) - _samples(scheduler, torch.zeros_like(impulses))
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError):  # a scheduler of another kind
        return None
    return responses if responses.isfinite().all() else None


def _samples(scheduler: Any, predictions: torch.Tensor) -> torch.Tensor:
    """Samples that start from zero, one a column: after each step, given each step's predictions, (steps, columns)."""
    copied = copy.deepcopy(scheduler)
    timesteps = copied.timesteps[len(copied.timesteps) - len(predictions) :]
    sample = torch.zeros(predictions.shape[1], 1, 1, 1, dtype=torch.float64)  # as a batch: some need four dimensions
    rows = []
    with torch.random.fork_rng(devices=[]):  # schedulers that add noise must not disturb the user's
        torch.manual_seed(0)
        for prediction, timestep in zip(predictions, timesteps, strict=True):
            if hasattr(copied, "scale_model_input"):
                copied.scale_model_input(sample, timestep)  # some warn unless it was called
            sample = copied.step(prediction.view_as(sample), timestep, sample, return_dict=False)[0].double()
            rows.append(sample.flatten())
    return torch.stack(rows)


def _input_scale(scheduler: Any, step: int, steps: int) -> float:
    """By what a scheduler multiplies the sample of a step before the network sees it; 1 after the last step."""
    if step >= steps or not hasattr(scheduler, "scale_model_input"):
        return 1.0
    copied = copy.deepcopy(scheduler)
    timestep = copied.timesteps[len(copied.timesteps) - steps + step]
    if hasattr(copied, "_step_index"):
        copied._step_index = len(copied.timesteps) - steps + step
    return float(copied.scale_model_input(torch.ones(1, 1, 1, 1, dtype=torch.float64), timestep))
