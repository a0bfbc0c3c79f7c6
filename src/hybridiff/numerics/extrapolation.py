"""Polynomials across steps: what a network would have returned, from what it returned. Pure tensor functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Tensors = tuple[torch.Tensor, ...]


class Extrapolation:
    """The polynomial through the latest observations of a few tensors, in float32.

    Taylor-style forecasting (TaylorSeer, arXiv 2503.06923) on Lagrange weights, so that observations need not be evenly
    spaced. Between observations it interpolates.

    Args:
        order: Degree of the polynomial: 0 holds the latest observation.
        places: Where positions 0, 1, ... lie; what is less than 1 apart is at one place. Where they say unless given.
    """

    def __init__(self, order: int, places: Sequence[float] | None = None) -> None:
        self.order = order
        self._places = places
        self._positions: list[float] = []
        self._observations: list[Tensors] = []

    def observe(self, position: float, tensors: Tensors) -> None:
        """Take in what was returned at a position, such as the index of a step; positions grow.

        Two observations at one place cannot lie on one polynomial: the later one takes the place of the earlier.
        """
        position = self._place(position)
        if self._positions and self._positions[-1] == position:
            self._positions, self._observations = self._positions[:-1], self._observations[:-1]
        self._positions = [*self._positions, position][-self.order - 1 :]
        self._observations = [*self._observations, tensors][-self.order - 1 :]

    def keep_last_rows(self, rows: int) -> None:
        """Go on with the last rows of all observations: where guidance ended, those of the conditional branch."""
        self._observations = [tuple(tensor[-rows:] for tensor in tensors) for tensors in self._observations]

    def at(self, position: float, order: int | None = None) -> Tensors:
        """The polynomial at a position, in the dtype of the observations.

        With fewer observations than the order needs, the polynomial through those there are.

        Args:
            position: Where.
            order: A lower degree, through the latest observations only.
        """
        assert self._observations, "an extrapolation needs an observation"
        nodes = 1 + (self.order if order is None else order)
        positions, observations = self._positions[-nodes:], self._observations[-nodes:]
        if len(positions) == 1:
            return observations[0]
        weights = _lagrange_weights(positions, self._place(position))
        return tuple(_weighted_sum(weights, tensors) for tensors in zip(*observations, strict=True))

    def latest_weight(self, position: float) -> float:
        """How far the polynomial at a position moves with the latest observation."""
        return _lagrange_weights(self._positions, self._place(position))[-1]

    def _place(self, position: float) -> float:
        return position if self._places is None else float(math.floor(self._places[int(position)]))


def _lagrange_weights(positions: Sequence[float], position: float) -> list[float]:
    weights = []
    for i, here in enumerate(positions):
        weight = 1.0
        for j, other in enumerate(positions):
            if i != j:
                weight *= (position - other) / (here - other)
        weights.append(weight)
    return weights


def _weighted_sum(weights: Sequence[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = tensors[0].float() * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = total.add(tensor, alpha=weight)
    return total.to(tensors[0].dtype)
