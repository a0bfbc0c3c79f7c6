"""Where gaps between full steps cost least: the shortest path through the steps left, under a price of error."""

from __future__ import annotations

from collections.abc import Callable

import torch

_PRICES = [2.0**octave * (1 + quarter / 4) for octave in range(-14, 27) for quarter in range(4)]
"""What a squared error costs in full steps, where the largest gap of one step leaves an error of 1."""


class GapPlan:
    """The fewest full steps for an error, from every step on.

    Squared errors of gaps add up. Full steps plus squared errors, at a price, are least along a shortest path, found by
    dynamic programming from the end. The higher the price, the fewer and shorter are the gaps.

    Args:
        expect: The error that is left of a gap up to so many steps after a step, for a unit of what changes in between.
        steps: Number of steps; the last two of them are full.
        longest: Full steps are at most this far apart.
    """

    def __init__(self, expect: Callable[[int, int], float], steps: int, longest: int) -> None:
        prices = torch.tensor(_PRICES, dtype=torch.float64, device="cpu")  # whatever the user's default is
        self._unit = max((expect(step, 2) for step in range(steps - 3)), default=0.0) ** 2 or 1.0
        costs = prices.new_zeros(steps, len(prices))  # squared errors from a step on, in that unit
        values, rooms = torch.zeros_like(costs), torch.ones_like(costs, dtype=torch.long)
        for step in range(steps - 2, -1, -1):
            distances = range(1, max(1, min(longest, steps - 2 - step)) + 1)
            squares = [expect(step, distance) ** 2 / self._unit if distance > 1 else 0.0 for distance in distances]
            own = prices.new_tensor(squares)[:, None]
            following = slice(step + 1, step + 1 + len(distances))
            values[step], best = (1 + prices * own + values[following]).min(0)
            costs[step] = (own + costs[following]).gather(0, best[None])[0]
            rooms[step] = best + 1
        self._costs, self._rooms = costs.tolist(), rooms.tolist()

    def room(self, step: int, scale: float, left: float) -> int:
        """How far the next full step is from a full step.

        Args:
            step: The full step.
            scale: What changes in between, in units.
            left: To what squared errors may add up from here on.
        """
        pairs = zip(self._costs[step], self._rooms[step], strict=True)
        return next((room for cost, room in pairs if cost * self._unit * scale**2 <= left), 1)
