"""Evaluations at one time, as second-order solvers make them: what hindsight over times cannot see of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .extrapolation import Extrapolation

_FORGETTING = 0.7
"""What a full step leaves of a speed that it does not see anew."""


class Repeats:
    """By how much two predictions at one time differ, measured where both are of full steps.

    Args:
        places: Where steps lie in time (`Sensitivity.places`).
    """

    def __init__(self, places: Sequence[float] | None) -> None:
        self._places = places
        self._difference: torch.Tensor | None = None
        self._speeds: dict[bool, torch.Tensor] = {}  # between times, and between two predictions at one time

    def distance(self, earlier: int, step: int) -> float:
        """How far two steps lie apart; less than 1 where their time is the same."""
        return step - earlier if self._places is None else self._places[step] - self._places[earlier]

    def observe(self, now: torch.Tensor, before: torch.Tensor, distance: float, speeds: torch.Tensor) -> torch.Tensor:
        """Take in the predictions of two full steps in a row, and how fast they change.

        Returns:
            These speeds, or those between steps of the other kind where these were larger lately; (B,).
        """
        if distance < 1:
            self._difference = now.float() - before.float()
        self._speeds = {kind: _FORGETTING * seen for kind, seen in self._speeds.items()} | {distance < 1: speeds}
        return torch.stack(list(self._speeds.values())).amax(0)

    def pair(self, hindsight: Extrapolation, step: int) -> torch.Tensor:
        """By how much hindsights of neighbouring degree differ; at a time that was seen, by how much evaluations do."""
        if self._difference is not None and self._places is not None and self._places[step] % 1:
            return self._difference
        return hindsight.at(step)[0] - hindsight.at(step, order=2)[0]
