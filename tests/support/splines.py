"""Smoothing splines said in another way: the weights that err least, for a process that is integrated noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def spline_weights(places: Sequence[float], place: float, noise: float = 30.0, bends: float = 30.0) -> torch.Tensor:
    """What values at some places count at another one.

    Changes are white noise integrated three times, and other noise integrated twice, observed with noise of a variance;
    a parabola on top of them may be anything. So weights must be right for parabolas, which leaves the freedom to err
    least: a problem without bounds in the null space of the powers.

    Args:
        places: Where the values are, growing, from 0 on.
        place: Where one is wanted.
        noise: Variance of the observations; that of the first process makes -|t|^5 its generalised covariance.
        bends: Generalised covariance of the second one, in |t|^3.
    """
    points = torch.tensor([*places, place], dtype=torch.float64)
    covariance = 240 * _thrice(points[:, None], points) + 12 * bends * _twice(points[:, None], points)
    own, wanted = covariance[:-1, :-1] + noise * torch.eye(len(places), dtype=torch.float64), covariance[:-1, -1]
    powers = torch.stack([(points[:-1] - place) ** n for n in range(min(3, len(places)))])
    right = torch.zeros(len(powers), dtype=torch.float64)
    right[0] = 1
    for_parabolas = torch.linalg.lstsq(powers, right, driver="gelsd").solution
    free = torch.linalg.svd(powers).Vh[len(powers) :].T
    best = torch.linalg.solve(free.T @ own @ free, free.T @ (wanted - own @ for_parabolas))
    return for_parabolas + free @ best


def spline_through(places: Sequence[float], values: Sequence[torch.Tensor], place: float) -> torch.Tensor:
    """The smooth curve through some values, at a place."""
    weights = spline_weights([one - places[0] for one in places], place - places[0])
    return (weights @ torch.stack(list(values)).double().flatten(1)).reshape(values[0].shape)


def _twice(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Covariance of white noise integrated twice from 0 on: the integral of (s - u) (t - u) up to the lesser."""
    less, more = torch.minimum(one, other), torch.maximum(one, other)
    return less**3 / 3 + (more - less) * less**2 / 2


def _thrice(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """The same of white noise integrated three times: the integral of (s - u)^2 (t - u)^2 / 4 up to the lesser."""
    less, more = torch.minimum(one, other), torch.maximum(one, other)
    return less**5 / 20 + (more - less) * less**4 / 8 + (more - less) ** 2 * less**3 / 12
