"""Schedules that are known beforehand: warm-up, and then groups of steps that are answered together."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..schedule.fixed import FixedPolicy
from ..schedule.kinds import StepKind


class PlannedPolicy(FixedPolicy):
    """The kind of each step, from a list; the first one is full.

    Args:
        kinds: Of each step.
    """

    def __init__(self, kinds: Sequence[StepKind]) -> None:
        super().__init__((step for step, kind in enumerate(kinds) if kind is StepKind.FULL), len(kinds))
        self.kinds = kinds

    def kind(self, step: int) -> StepKind:
        # A tau2 that moved says that guidance has ended.
        is_over = step >= len(self.kinds) or (self.tau2 is not None and step > self.tau2)
        return StepKind.FULL if is_over else self.kinds[step]


def plan_groups(steps: int, warm_up: int, size: int, first: StepKind, full: Collection[int] = ()) -> list[StepKind]:
    """The kinds of the steps of a run: full ones, then groups of which all but the first step compute nothing.

    Args:
        steps: Number of steps.
        warm_up: Full steps at the beginning.
        size: Steps of a group.
        first: Kind of its first step.
        full: Further steps that are full; they end a group.
    """
    kinds: list[StepKind] = []
    place = 0  # in the group
    for step in range(steps):
        if step < warm_up or step in full:
            kinds.append(StepKind.FULL)
            place = 0
        else:
            kinds.append(StepKind.CACHED if place % size else first)
            place += 1
    return kinds
