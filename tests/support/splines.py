"""Smoothing splines by the textbook: second derivatives at the knots, and cubics between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch


class SmoothingSpline:
    """The curve f that makes `sum |y - f|^2 + roughness * integral |f''|^2` least (Reinsch 1967); a line through two.

    Args:
        places: Where the points lie, growing.
        values: The points, of any shape.
        roughness: 1/12 is a nugget of 1 in kriging with the covariance |t|^3.
    """

    def __init__(self, places: Sequence[float], values: Sequence[torch.Tensor], roughness: float = 1 / 12) -> None:
        self.places = list(places)
        self.shape = values[0].shape
        points = torch.stack(list(values)).double().flatten(1)
        widths = [after - before for before, after in itertools.pairwise(places)]
        inner = max(0, len(self.places) - 2)
        second = torch.zeros(len(self.places), inner, dtype=torch.float64)  # second differences of values
        bending = torch.zeros(inner, inner, dtype=torch.float64)
        for i in range(inner):
            left, right = widths[i], widths[i + 1]
            second[i, i], second[i + 1, i], second[i + 2, i] = 1 / left, -1 / left - 1 / right, 1 / right
            bending[i, i] = (left + right) / 3
            if i + 1 < inner:
                bending[i, i + 1] = bending[i + 1, i] = right / 6
        curvature = torch.linalg.solve(bending + roughness * second.T @ second, second.T @ points)
        self.knots = points - roughness * second @ curvature
        self.curvature = torch.zeros_like(points)
        self.curvature[1:-1] = curvature

    def __call__(self, place: float) -> torch.Tensor:
        """Its value between the first and the last point."""
        if len(self.places) == 1:
            return self.knots[0].reshape(self.shape)
        i = next(i for i in range(len(self.places) - 1) if place <= self.places[i + 1])
        width = self.places[i + 1] - self.places[i]
        after, ahead = place - self.places[i], self.places[i + 1] - place
        straight = (after * self.knots[i + 1] + ahead * self.knots[i]) / width
        bend = (1 + after / width) * self.curvature[i + 1] + (1 + ahead / width) * self.curvature[i]
        return (straight - after * ahead / 6 * bend).reshape(self.shape)
