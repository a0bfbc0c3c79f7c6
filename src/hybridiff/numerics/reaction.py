"""How the guided network answers a displaced sample: it pulls it back, before anything has been corrected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ..config import REFERENCE_STEPS
from .guidance import guided

RATE = 0.06
"""Share of a displacement that guidance pulls back in one of 50 steps, at the start, per unit of its scale above 1."""

DECAY = 2.0
"""The rate falls as `exp(-DECAY * progress)`: both branches come to see the same image."""

_MOST = 0.25
"""No more was seen at any scale in one of 50 steps."""

_LEAST_DIVISOR = 0.5
"""Where hindsight moves against the prediction, as in barely stable multistep solvers, no more is made of a pull."""


class Reaction:
    """What a network has made of a displaced sample, as far as its guidance scale says.

    The unconditional branch follows a displacement, as it has not settled what to draw, while the conditional one
    pulls back, as it knows; guidance multiplies the difference. So the prediction of a sample that is off contains a
    pull `rate * correction`, with *correction* the change in this prediction that would move the sample to where it
    should be. Both branches are given it alike: only the guided prediction moves the sample.

    Args:
        coefficients: By which guidance multiplies the branches, 1 - w first.
        begin: Index of the run's first timestep among those of the whole way from noise to image.
        whole: Number of timesteps of the whole way.
    """

    def __init__(self, coefficients: Sequence[float], begin: int, whole: int) -> None:
        self._coefficients, self._begin, self._whole = coefficients, begin, whole

    def rate(self, step: int) -> float:
        """Share of a displacement that the prediction of a step pulls back."""
        progress = (self._begin + step) / self._whole
        of_fifty = min(_MOST, RATE * max(0.0, -self._coefficients[0]) * math.exp(-DECAY * progress))
        return min(2 * _MOST, of_fifty * REFERENCE_STEPS / self._whole)

    def pull(self, step: int, correction: torch.Tensor, weight: float) -> torch.Tensor:
        """The pull in a prediction, in both branches alike: (2B, ...) as the correction.

        Args:
            step: Of the prediction.
            correction: What was to be corrected, as hindsight says that takes this prediction for undisturbed.
            weight: How far a change in the prediction changes that correction.
        """
        rate = self.rate(step)
        pull = rate / max(_LEAST_DIVISOR, 1 + rate * weight) * guided(correction, self._coefficients)
        return pull.repeat(len(self._coefficients), *[1] * (pull.ndim - 1))
