"""Straight lines between points."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def interpolate(points: Sequence[tuple[float, float]], position: float) -> float:
    """The value at a position along straight lines through points in rising order; beyond them the outermost one."""
    places = [place for place, _ in points]
    after = bisect_left(places, position)
    if after == 0:
        return points[0][1]
    if after == len(points):
        return points[-1][1]
    (left, low), (right, high) = points[after - 1], points[after]
    return low + (high - low) * (position - left) / (right - left)
