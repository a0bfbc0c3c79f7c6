"""Forecasts across steps: what a network would have returned, from what it returned before. Pure tensor functions."""

from __future__ import annotations

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
        spread: An observation nearer than this to the one before replaces it: slopes between near ones mislead.
    """

    def __init__(self, order: int, spread: float = 0.0) -> None:
        self.order = order
        self._spread = spread
        self._positions: list[float] = []
        self._observations: list[Tensors] = []

    def __len__(self) -> int:
        return len(self._positions)

    def observe(self, position: float, tensors: Tensors) -> None:
        """Take in what was returned at a position, such as the index of a step; positions grow."""
        if self._positions and position - self._positions[-1] < self._spread:
            self._positions.pop()
            self._observations.pop()
        self._positions = [*self._positions, position][-self.order - 1 :]
        self._observations = [*self._observations, tensors][-self.order - 1 :]

    def at(self, position: float) -> Tensors:
        """What would be returned at a later position, in the dtype of the observations.

        With fewer observations than the order needs, along the polynomial through those there are.
        """
        assert self._observations, "a forecast needs an observation"
        weights = _lagrange_weights(self._positions, position)
        if len(weights) == 1:
            return self._observations[0]
        return tuple(_weighted_sum(weights, tensors) for tensors in zip(*self._observations, strict=True))


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
