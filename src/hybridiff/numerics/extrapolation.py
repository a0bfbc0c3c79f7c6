"""Forecasts across steps: what a network would have returned, from what it returned before. Pure tensor functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

Tensors = tuple[torch.Tensor, ...]

ORDERS = {"hold": 0, "linear": 1, "quadratic": 2}
"""Degree of the polynomial through the latest observations, by name."""


class Forecast:
    """Carries a few tensors forward along the polynomial through their latest observations.

    Taylor-style forecasting of features (TaylorSeer, arXiv 2503.06923) on Newton's divided differences, so that
    observations need not be evenly spaced. Computed in float32.

    Args:
        order: Degree of the polynomial: 0 holds the latest observation.
        spread: Observations that the polynomial goes through are at least this far apart: slopes between near ones
            mislead.
    """

    def __init__(self, order: int, spread: float = 0.0) -> None:
        self.order = order
        self._spread = spread
        self._positions: list[float] = []
        self._observations: list[Tensors] = []

    def __len__(self) -> int:
        return len(self._positions)

    def observe(self, position: float, tensors: Tensors) -> None:
        """Take in what was returned at a position, such as the index of a step; positions grow, by 1 or more."""
        kept = self.order * max(1, math.ceil(self._spread)) + 1  # so many hold what is far enough apart
        self._positions = [*self._positions, position][-kept:]
        self._observations = [*self._observations, tensors][-kept:]

    def at(self, position: float) -> Tensors:
        """What would be returned at a later position, in the dtype of the observations.

        With fewer observations than the order needs, along the polynomial through those there are.
        """
        assert self._observations, "a forecast needs an observation"
        chosen = self._far_enough_apart()
        weights = _lagrange_weights([self._positions[index] for index in chosen], position)
        observations = [self._observations[index] for index in chosen]
        if len(weights) == 1:
            return observations[0]
        return tuple(_weighted_sum(weights, tensors) for tensors in zip(*observations, strict=True))

    def _far_enough_apart(self) -> list[int]:
        """Which observations the polynomial goes through, in order: the latest, and from it backwards."""
        chosen = [len(self._positions) - 1]
        for index in reversed(range(chosen[0])):
            if len(chosen) <= self.order and self._positions[chosen[0]] - self._positions[index] >= self._spread:
                chosen.insert(0, index)
        return chosen


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
