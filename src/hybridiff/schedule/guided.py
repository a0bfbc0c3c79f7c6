"""Guided switching: step-size control, as for ordinary differential equations."""

from __future__ import annotations

from collections.abc import Sequence

from .kinds import Policy, StepKind

SETTLED_CHANGE = 0.4
"""The parallel phase opens once the discrepancy changes by no more than this share of itself in a step."""

PATIENCE = 4
"""The parallel phase closes for good after this many full steps in a row that leave no room between them."""


class GuidedPolicy(Policy):
    """How soon a full step follows depends on the drift that the last ones showed.

    The drift is taken to grow in proportion to the distance from the last full step. From a full step on, other steps
    follow as long as the drift expected of them, times their weight, stays within the tolerance; at most twice as many
    as before. The parallel phase opens (tau1) where the discrepancy has settled and the drift leaves room for the
    first step that is not full, and closes (tau2) where full steps show that they leave no room any more. The last
    two steps are always full: what networks predict at the very end is unlike all before.

    Args:
        tolerance: Drift that a step may have since the last full one, weighted by how far the step moves the sample.
        longest: Full steps are at most this far apart.
        weights: How far each step moves the sample, 1 on average (`sensitivity.Sensitivity.weights`).
        step_kind: Kind of the steps between full ones.
    """

    def __init__(self, tolerance: float, longest: int, weights: Sequence[float], step_kind: StepKind) -> None:
        super().__init__(step_kind)
        self.tolerance, self.longest = tolerance, longest
        self._weights = weights
        self._latest = 0  # latest full step
        self._next = 1  # the full step after it
        self._discrepancy = float("inf")
        self._without_room = 0
        self._has_settled = False

    def observe(self, step: int, discrepancy: float, drift: float, estimates: Sequence[float] = ()) -> None:
        if self.tau2 is not None:
            return
        self._has_settled = self._has_settled or self._changes_little(discrepancy)
        distance, self._latest, self._discrepancy = max(1, step - self._latest), step, discrepancy
        self._next = step + (self._room(step, distance, drift) if self._has_settled else 1)
        if self._next > step + 1:
            self._without_room = 0
            if self.tau1 is None:
                self.tau1 = step
        elif self.tau1 is not None:
            self._without_room += 1
            if self._without_room >= PATIENCE or step >= len(self._weights) - 1:
                self.tau2 = step

    def is_full(self, step: int) -> bool:
        return not self._latest < step < self._next

    def _changes_little(self, discrepancy: float) -> bool:
        return abs(discrepancy - self._discrepancy) <= SETTLED_CHANGE * discrepancy

    def _room(self, step: int, distance: int, drift: float) -> int:
        """How far the next full step may lie from this one."""
        limit = min(self.longest, 2 * distance, len(self._weights) - 2 - step)
        room = 1
        # Not so for NaN, the drift of the very first step.
        while room < limit and drift * room / distance * self._weights[step + room] <= self.tolerance:
            room += 1
        return room
