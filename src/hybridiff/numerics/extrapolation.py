"""Polynomials across steps: what a network would have returned, from what it returned. Pure tensor functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

Tensors = tuple[torch.Tensor, ...]

NOISE = 30.0
"""Of what changes from step to step: how much of it is without order, where smooth changes grow as -|steps|^5 ..."""

BENDS = 30.0
"""... and how much of it bends, as |steps|^3."""

Weights = Callable[[Sequence[float], float], list[float]]
"""What each of some positions counts at another one."""


def lagrange_weights(positions: Sequence[float], position: float) -> list[float]:
    """The polynomial through all positions."""
    weights = []
    for i, here in enumerate(positions):
        weight = 1.0
        for j, other in enumerate(positions):
            if i != j:
                weight *= (position - other) / (here - other)
        weights.append(weight)
    return weights


@lru_cache(maxsize=4096)
def smoothing_weights(positions: Sequence[float], position: float) -> list[float]:
    """A smoothing spline through some positions (Wahba, Spline Models for Observational Data, 1990).

    It is kriging with the generalised covariance `BENDS` |t|^3 - |t|^5, a quadratic trend and a nugget of `NOISE`.
    Where positions are close together, as one gap between full steps in a row has it, a polynomial through them
    amplifies what is noise from step to step: there this is nearly a straight line. Where they are far apart it is the
    polynomial.
    """
    nodes = torch.tensor(positions, dtype=torch.float64, device="cpu")
    powers = torch.arange(min(3, len(nodes)), device="cpu")
    trend = (nodes - position)[None] ** powers[:, None]
    covariance = NOISE * torch.ones_like(nodes).diag() + _covariance(nodes[:, None] - nodes)
    corner = nodes.new_zeros(len(trend), len(trend))
    system = torch.cat([torch.cat([covariance, trend.T], 1), torch.cat([trend, corner], 1)])
    wanted = torch.cat([_covariance(nodes - position), (powers == 0).double()])
    solved = torch.linalg.solve(system, wanted)[: len(nodes)]
    return [round(weight, 12) for weight in solved.tolist()]  # libraries of unlike machines differ in the last bits


def _covariance(steps: torch.Tensor) -> torch.Tensor:
    return BENDS * steps.abs() ** 3 - steps.abs() ** 5


class Extrapolation:
    """A curve through the latest observations of a few tensors, in float32 or theirs if that is wider.

    Taylor-style forecasting (TaylorSeer, arXiv 2503.06923) on weights of positions, so that observations need not be
    evenly spaced. Between observations it interpolates.

    Args:
        order: One less than the number of observations; of a polynomial its degree: 0 holds the latest observation.
        places: Where positions 0, 1, ... lie; what is less than 1 apart is at one place. Where they say unless given.
        weights: The kind of the curve.
    """

    def __init__(self, order: int, places: Sequence[float] | None = None, weights: Weights = lagrange_weights) -> None:
        self.order = order
        self._places, self._weights = places, weights
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
        """The curve at a position, in the dtype of the observations.

        With fewer observations than the order needs, the curve through those there are.

        Args:
            position: Where.
            order: A lower degree, through the latest observations only.
        """
        assert self._observations, "an extrapolation needs an observation"
        nodes = 1 + (self.order if order is None else order)
        positions, observations = self._positions[-nodes:], self._observations[-nodes:]
        if len(positions) == 1:
            return observations[0]
        weights = self._weights(tuple(positions), self._place(position))
        return tuple(_weighted_sum(weights, tensors) for tensors in zip(*observations, strict=True))

    def latest_weight(self, position: float) -> float:
        """How far the curve at a position moves with the latest observation."""
        return self._weights(tuple(self._positions), self._place(position))[-1]

    def _place(self, position: float) -> float:
        return position if self._places is None else float(math.floor(self._places[int(position)]))


def _weighted_sum(weights: Sequence[float], tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    total = tensors[0].to(torch.promote_types(tensors[0].dtype, torch.float32)) * weights[0]
    for weight, tensor in zip(weights[1:], tensors[1:], strict=True):
        total = total.add(tensor, alpha=weight)
    return total.to(tensors[0].dtype)
