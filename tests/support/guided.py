"""The guided rule said in another way, from everything that full steps have shown at once; and generations to try."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hybridiff import Phase, StepKind
from hybridiff.schedule.kinds import Policy

Shown = tuple[int, Any, Any]
"""What a full step showed: the step, its discrepancy, and the drift since the full step before."""

Drift = Callable[[int, int], Any]
"""The drift between two steps."""


@dataclass
class GuidedByHand:
    """The guided rule.

    Attributes:
        tolerance: How much weighted drift a step may have that is not full.
        longest: Largest gap between full steps.
        weights: How far each step moves the sample.
        settled: Share of itself by which the discrepancy may change where it counts as settled.
        patience: Number of full steps without room after which it is over.
    """

    tolerance: Any
    longest: int
    weights: Sequence[Any]
    settled: Any = 0.4
    patience: int = 4

    def next_full(self, shown: Sequence[Shown]) -> int:
        """The full step after the latest one."""
        latest, _, drift = shown[-1]
        if len(shown) < 2 or not self.has_settled(shown) or self.taus(shown)[1] is not None:
            return latest + 1
        distance = latest - shown[-2][0]
        gaps = range(1, min(self.longest, 2 * distance, max(1, len(self.weights) - 2 - latest)) + 1)
        return latest + max(
            gap
            for gap in gaps
            if all(drift * ahead / distance * self.weights[latest + ahead] <= self.tolerance for ahead in range(1, gap))
        )

    def has_settled(self, shown: Sequence[Shown]) -> bool:
        """Whether the discrepancy ever changed little between two full steps."""
        return any(abs(now - before) <= self.settled * now for (_, before, _), (_, now, _) in itertools.pairwise(shown))

    def taus(self, shown: Sequence[Shown]) -> tuple[int | None, int | None]:
        """The full step before the first gap, and the one whose gap of 1 was one too many, or the last one."""
        steps = [step for step, *_ in shown]
        gaps = [after - before for before, after in itertools.pairwise(steps)]
        first = next((place for place, gap in enumerate(gaps) if gap > 1), None)
        if first is None:
            return None, None
        for place in range(first + self.patience, len(gaps)):
            if all(gap == 1 for gap in gaps[place - self.patience + 1 : place + 1]):
                return steps[first], steps[place]
        return steps[first], steps[-1] if steps[-1] == len(self.weights) - 1 else None

    def run(self, discrepancies: Sequence[Any], drift: Drift) -> list[Shown]:
        """All full steps of a generation, given the drift between any two steps."""
        shown: list[Shown] = [(0, discrepancies[0], float("nan"))]
        while shown[-1][0] < len(self.weights) - 1:
            step = self.next_full(shown)
            shown.append((step, discrepancies[step], drift(shown[-1][0], step)))
        return shown


def generate(policy: Policy, discrepancies: Sequence[Any], drift: Drift) -> tuple[list[Shown], list[Phase]]:
    """A generation: what its full steps showed, and the phase of every step as it was before the step ran."""
    shown: list[Shown] = []
    phases = []
    for step, discrepancy in enumerate(discrepancies):
        phases.append(policy.phase(step))
        if policy.kind(step) is StepKind.FULL:
            moved = drift(shown[-1][0], step) if shown else math.nan
            shown.append((step, discrepancy, moved))
            policy.observe(*shown[-1])
    return shown, phases


def steady(speed: Any) -> Drift:
    """Predictions that move by the same amount in every step."""
    return lambda before, after: speed * (after - before)


def path(moves: Sequence[Any]) -> Drift:
    """Predictions that move by as much as is said for each step."""
    return lambda before, after: sum(moves[before + 1 : after + 1])
