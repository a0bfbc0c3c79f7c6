"""A schedule known beforehand."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import UsageError
from .kinds import Policy, StepKind


class FixedPolicy(Policy):
    """Full steps that were given; all others are of one kind.

    Args:
        full: The full steps.
        steps: Number of steps of the run.
        step_kind: Kind of all other steps.

    Raises:
        UsageError: a full step lies beyond the last one, or the first step is not full.
    """

    def __init__(self, full: Iterable[int], steps: int, step_kind: StepKind = StepKind.CACHED) -> None:
        super().__init__(step_kind)
        self._full = frozenset(full)
        if 0 not in self._full:
            raise UsageError("full_steps must have step 0: nothing is known before it")
        if max(self._full) > steps - 1:
            raise UsageError(f"full step {max(self._full)} lies beyond the last of {steps} steps ({steps - 1})")
        others = sorted(set(range(steps)) - self._full)
        if others:
            self.tau1, self.tau2 = others[0] - 1, others[-1]

    @classmethod
    def all_full(cls, steps: int) -> FixedPolicy:
        """Every step is full."""
        return cls(range(steps), steps)

    def is_full(self, step: int) -> bool:
        return step in self._full
