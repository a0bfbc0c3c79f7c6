"""The promised rule said in another way, from everything that full steps have shown at once; and runs to try it on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hybridiff import StepKind
from hybridiff.numerics.estimate import FADING, REACTION
from hybridiff.schedule.promised import PromisedPolicy

Shown = tuple[int, Sequence[float], Sequence[float]]
"""What a full step showed: the step, the speeds, and the estimated errors so far, one per image each."""


@dataclass
class PromisedByHand:
    """The promised rule.

    Attributes:
        bound: What the final sample may be off.
        final: How far each prediction moves the final sample.
        longest: Largest distance of full steps.
    """

    bound: float
    final: Sequence[float]
    longest: int

    def expected(self, speed: float, step: int, gap: int) -> float:
        """What a gap is expected to leave: predictions held while they go on at a speed, most of it made up for."""
        steps = len(self.final)
        moved = sum(speed * ahead * abs(self.final[step + ahead]) for ahead in range(1, gap))
        decibels = FADING * (steps - 1 - step - gap) / steps
        return float(REACTION * moved / 10 ** (decibels / 20))

    def factor(self, shown: Sequence[Shown], row: int) -> float:
        """What was learned of all gaps of an image."""
        logarithm = 0.0
        for (step, speeds, before), (after, _, spent) in itertools.pairwise(shown):
            logarithm /= 2
            left = math.sqrt(max(0.0, spent[row] ** 2 - before[row] ** 2)) if len(before) else 0.0
            expected = self.expected(speeds[row], step, after - step) if after > step + 1 else 0.0
            if left > 0 and expected > 0:
                logarithm += math.log(min(4.0, max(0.25, left / expected))) / 2
        return math.exp(logarithm)

    def share(self, shown: Sequence[Shown], row: int, gap: int) -> float:
        """How much of its (squared) share of what is left of the bound a gap is expected to take; 1 is all of it."""
        step, speeds, spent = shown[-1]
        expected = self.factor(shown, row) * self.expected(speeds[row], step, gap)
        share = (self.bound**2 - spent[row] ** 2) * min(0.5, gap / (len(self.final) - 1 - step))
        if share <= 0:
            return 0.0 if expected == share == 0 else math.inf
        return expected**2 / share

    def next_full(self, shown: Sequence[Shown]) -> int:
        """The full step after the latest one."""
        step, speeds, _ = shown[-1]
        last = len(self.final) - 1
        if len(shown) < 3 or not speeds:
            return step + 1
        gap = 1
        for longer in range(2, min(self.longest, 2 * (step - shown[-2][0]), last - 1 - step) + 1):
            if any(not self.share(shown, row, longer) <= 1 for row in range(len(speeds))):
                break
            gap = longer
        return step + gap


Speeds = Callable[[int], Sequence[float]]
Left = Callable[[int, int, Sequence[float]], Sequence[float]]
"""What a gap from one full step to another leaves, given the speeds before it."""


def run_policy(policy: PromisedPolicy, steps: int, speeds: Speeds, left: Left) -> list[Shown]:
    """What the full steps of a run show whose speeds and errors are given.

    As in a run the first full step shows nothing, and errors are added up in quadrature.
    """
    shown: list[Shown] = []
    spent: list[float] = []
    for step in range(steps):
        if policy.kind(step) is not StepKind.FULL:
            continue
        now: Sequence[float] = ()
        if shown:
            latest, before, _ = shown[-1]
            now = speeds(step)
            spent = spent or [0.0] * len(now)
            if step > latest + 1:
                gap = left(latest, step, before)
                spent = [math.hypot(one, other) for one, other in zip(spent, gap, strict=True)]
        shown.append((step, now, list(spent)))
        policy.observe(step, 0.5, 0.1, [*now, *spent])
    return shown


def gaps(shown: Sequence[Shown]) -> list[int]:
    """Distances of full steps."""
    return [after - before for (before, *_), (after, *_) in itertools.pairwise(shown)]
