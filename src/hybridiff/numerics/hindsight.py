"""What a full step shows of the cached steps before it: by how much they were off, and what makes up for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .extrapolation import Extrapolation, smoothing_weights
from .reaction import Reaction
from .repeats import Repeats
from .sensitivity import Sensitivity

Answered = Sequence[tuple[int, torch.Tensor]]
"""Cached steps, and what each answered."""


class Hindsight:
    """Looks back from full steps, at the predictions of which cached steps should have been near.

    A cached step j should have predicted what a smooth curve through the latest six full steps says there. That
    difference, times how far j moves the sample relative to the full step, moves the sample to where it would be.
    Before, what the network made of the displaced sample is taken out of the full step's own prediction.

    Args:
        sensitivity: How far each prediction moves the sample.
        reaction: What the network makes of a displaced sample.

    Attributes:
        errors: By how much each cached step before the latest full one was off, (2B, ...) in float32.
    """

    def __init__(self, sensitivity: Sensitivity, reaction: Reaction) -> None:
        self._sensitivity, self._reaction = sensitivity, reaction
        self._predictions = Extrapolation(order=5, places=sensitivity.places, weights=smoothing_weights)
        self._change: torch.Tensor | None = None  # that the latest prediction is due
        self.errors: dict[int, torch.Tensor] = {}

    def keep_last_rows(self, rows: int) -> None:
        """Go on with the conditional branch alone."""
        self._predictions.keep_last_rows(rows)

    def look_back(self, step: int, prediction: torch.Tensor, answered: Answered, is_guided: bool) -> torch.Tensor:
        """Take in a full step.

        Args:
            step: The step.
            prediction: Of the network, all rows.
            answered: The cached steps since the full step before.
            is_guided: Whether it has both branches, as all steps before it.

        Returns:
            What the network would have predicted, had the cached steps not displaced the sample.
        """
        self._predictions.observe(step, (prediction,))
        self.errors = {cached: self._predictions.at(cached)[0].float() - held.float() for cached, held in answered}
        gains = {cached: self._sensitivity.gain(cached, step) for cached in self.errors}
        self._change = None
        if not any(gains.values()):
            return prediction
        self._change = torch.stack([gains[cached] * error for cached, error in self.errors.items()]).sum(0)
        if not is_guided:
            return prediction
        weights = {cached: self._predictions.latest_weight(cached) for cached in self.errors}
        weight = sum(gain * weights[cached] for cached, gain in gains.items())
        pull = self._reaction.pull(step, self._change, weight)
        self.errors = {cached: error - weights[cached] * pull for cached, error in self.errors.items()}
        self._change = self._change - (1 + weight) * pull
        undisturbed = (prediction.float() - pull).to(prediction.dtype)
        self._predictions.observe(step, (undisturbed,))
        return undisturbed

    def correct(self, prediction: torch.Tensor) -> torch.Tensor:
        """The prediction of the latest full step, changed so that it makes up for the errors; once."""
        change, self._change, self.errors = self._change, None, {}
        return prediction if change is None else (prediction.float() + change).to(prediction.dtype)

    def pairs(self, repeats: Repeats) -> list[torch.Tensor]:
        """By how much hindsights of neighbouring degree differ at the cached steps."""
        return [repeats.pair(self._predictions, cached) for cached in self.errors]
