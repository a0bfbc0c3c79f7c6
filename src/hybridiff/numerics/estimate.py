"""How far cached steps leave the final sample off: an estimate that costs no evaluation.

A full step corrects the cached steps before it in hindsight. Two things are left: what the interpolation gets wrong,
about the difference of two interpolations of neighbouring degree (an embedded pair, as in Runge-Kutta methods), and
what the network made of the displaced sample beyond the pull that is taken out, about a share of the correction itself.
A third comes with half types: a sample that is another one in its last bit is rounded otherwise from then on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .guidance import guided
from .sensitivity import Sensitivity

REACTION = 0.5
"""Share of a correction that is left, as the network has reacted to the error before it was corrected."""

PAIR = 1.0
"""Share of the difference between the curve through six full steps and the one through three that the first is off."""

FADING = 5.0
"""Decibels by which the network reduces an error of the first step until the last one; of later ones in proportion."""

ROUNDING = 1.25
"""Rounding of a network's predictions in a half type, in units of the type's machine epsilon times their size."""

_TURNED = -0.8
"""Cosine between two changes in a row from which on the second one takes the first one back."""

OSCILLATES = (
    "predictions go to and fro: this scheduler's steps are too long for the model and its guidance, even where all are "
    "full, and errors grow beyond the estimate; take more steps, or another scheduler"
)
"""What is to be said of a run whose solver is not stable."""


def fading(step: int, steps: int) -> float:
    """By how much the network reduces an error of a step until the end."""
    return float(10 ** (-FADING / 20 * (1 - (step + 1) / steps)))


class ErrorEstimate:
    """The estimated error of the final sample, one per image of the batch, in root mean square.

    Args:
        sensitivity: How far each prediction moves the sample; of a linear scheduler.
        coefficients: By which guidance multiplies the branches.
    """

    def __init__(self, sensitivity: Sensitivity, coefficients: Sequence[float]) -> None:
        self._final = sensitivity.influence
        self._rounding = math.hypot(*(value * fading(step, len(self._final)) for step, value in enumerate(self._final)))
        self._coefficients, self._is_noisy = coefficients, sensitivity.is_stochastic
        self._squares: torch.Tensor | None = None
        self._change: torch.Tensor | None = None
        self._turned: list[torch.Tensor] = []

    def close_gap(self, steps: Sequence[int], errors: Sequence[torch.Tensor], pairs: Sequence[torch.Tensor]) -> None:
        """Take in what a full step shows of the cached steps before it.

        Args:
            steps: The cached steps.
            errors: By how much each was off in hindsight, (2B, ...).
            pairs: By how much two hindsights of neighbouring degree differ.
        """
        corrected, pair = self._moved(steps, errors), self._moved(steps, pairs)
        left = (REACTION * corrected).square() + (PAIR * pair).square()
        left = left * fading(steps[-1] + 1, len(self._final)) ** 2
        self._squares = left if self._squares is None else self._squares + left

    def speeds(self, now: torch.Tensor, before: torch.Tensor, distance: float) -> torch.Tensor:
        """How fast the guided predictions of two full steps in a row change, per step, (B,)."""
        change = guided(now.float() - before.float(), self._coefficients).flatten(1)
        if distance >= 1 and not self._is_noisy:  # at two times, with nothing but the solver between them
            if self._change is not None:
                self._turned.append(torch.cosine_similarity(change, self._change) < _TURNED)
            self._change = change
        return _squares(change).sqrt() / distance

    @property
    def oscillates(self) -> bool:
        """Whether some image's predictions mostly went to and fro: the solver is unstable. Waits for the device."""
        return bool(self._turned) and float(torch.stack(self._turned).float().mean(0).max()) > 0.5

    def errors(self, like: torch.Tensor) -> torch.Tensor:
        """The estimate so far, (B,); zeros like a tensor where there was no gap."""
        return torch.zeros_like(like) if self._squares is None else self._squares.sqrt()

    def rounding(self, now: torch.Tensor) -> torch.Tensor:
        """What rounding of predictions like these will have done by the end, (B,); 0 if they are of no half type."""
        kind, branches = torch.finfo(now.dtype), now.chunk(len(self._coefficients))
        if kind.bits >= 32:
            return now.new_zeros(len(branches[0]), dtype=torch.float32)
        sizes = [_squares(weight * rows.float()) for weight, rows in zip(self._coefficients, branches, strict=True)]
        return ROUNDING * kind.eps * self._rounding * torch.stack(sizes).sum(0).sqrt()

    def _moved(self, steps: Sequence[int], changes: Sequence[torch.Tensor]) -> torch.Tensor:
        """How far changes of some predictions move the final sample, (B,)."""
        moved = [self._final[step] * change for step, change in zip(steps, changes, strict=True)]
        return _squares(guided(torch.stack(moved).sum(0), self._coefficients)).sqrt()


def _squares(rows: torch.Tensor) -> torch.Tensor:
    """The mean square of each row."""
    return rows.flatten(1).square().mean(1)
