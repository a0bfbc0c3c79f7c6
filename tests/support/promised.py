"""The promised rule said in another way, from everything that full steps have shown at once; and runs to try it on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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
    _paths: dict[float, dict[int, tuple[float, list[int]]]] = field(default_factory=dict)

    def expected(self, speed: float, step: int, gap: int) -> float:
        """What a gap is expected to leave: predictions held while they go on at a speed, most of it made up for."""
        steps = len(self.final)
        moved = sum(speed * ahead * abs(self.final[step + ahead]) for ahead in range(1, gap))
        decibels = FADING * (steps - 1 - step - gap) / steps
        return float(REACTION * moved / 10 ** (decibels / 20))

    def factor(self, shown: Sequence[Shown], row: int) -> float:
        """What was learned of all gaps of an image."""
        logarithm = 0.0
        for place, ((step, _, before), (after, _, spent)) in enumerate(itertools.pairwise(shown), start=1):
            logarithm /= 2
            left = math.sqrt(max(0.0, spent[row] ** 2 - before[row] ** 2)) if len(before) else 0.0
            has_gap = after > step + 1
            expected = self.speed(shown[:place], row) * self.expected(1.0, step, after - step) if has_gap else 0.0
            if left > 0 and expected > 0:
                logarithm += math.log(min(4.0, max(0.25, left / expected))) / 2
        return math.exp(logarithm)

    def speed(self, shown: Sequence[Shown], row: int) -> float:
        """That of an image at the latest full step, halfway between what it was and what was seen, on a log scale."""
        smooth = shown[1][1][row]
        for _, speeds, _ in shown[2:]:
            both = smooth * speeds[row]
            smooth = math.sqrt(both) if both > 0 and math.isfinite(both) else speeds[row]
        return smooth

    def left(self, shown: Sequence[Shown], row: int) -> float:
        """What is left of the squared bound."""
        return max(0.0, self.bound**2 - shown[-1][2][row] ** 2)

    def share(self, shown: Sequence[Shown], row: int, gap: int) -> float:
        """How much of the most that a gap may be expected to take (squared) it is expected to take."""
        step = shown[-1][0]
        expected = self.factor(shown, row) * self.speed(shown, row) * self.expected(1.0, step, gap)
        share = self.left(shown, row) * min(0.5, 2 * gap / (len(self.final) - 1 - step))
        if share <= 0:
            return 0.0 if expected == share == 0 else math.inf
        return expected**2 / share

    def path(self, step: int, price: float) -> tuple[float, list[int]]:
        """The gaps to the end that cost least at a price of squared errors, and that cost; one by one where equal."""
        if step not in self._paths.setdefault(price, {}):
            self._paths[price][step] = min(self._paths_from(step, price), key=lambda path: path[0])
        return self._paths[price][step]

    def planned(self, shown: Sequence[Shown], row: int, left: float) -> int:
        """The first gap of the cheapest plan whose squared errors fit into what is left."""
        scale, step = self.factor(shown, row) * self.speed(shown, row), shown[-1][0]
        for price in (2.0**octave * quarter for octave in range(-14, 27) for quarter in (1, 1.25, 1.5, 1.75)):
            path = self.path(step, price)[1]
            steps = itertools.accumulate([step, *path])
            error = sum(self.expected(1.0, at, gap) ** 2 for at, gap in zip(steps, path, strict=False))
            if error * scale**2 <= left:
                return path[0] if path else 1
        return 1

    def next_full(self, shown: Sequence[Shown], tolerance: float = 0.0) -> int:
        """The full step after the latest one, were there a little more left."""
        step, speeds, _ = shown[-1]
        if len(shown) < 3 or not speeds:
            return step + 1
        return step + max(1, min(self._gap(shown, row, 1 + tolerance) for row in range(len(speeds))))

    def _gap(self, shown: Sequence[Shown], row: int, more: float) -> int:
        step = shown[-1][0]
        planned = self.planned(shown, row, self.left(shown, row) * more)
        gap = min(self.longest, 2 * (step - shown[-2][0]), len(self.final) - 2 - step, planned)
        while gap > 1 and not self.share(shown, row, gap) <= more:
            gap -= 1
        return gap

    def _paths_from(self, step: int, price: float) -> list[tuple[float, list[int]]]:
        before_last = len(self.final) - 2
        if step > before_last:
            return [(0.0, [])]
        paths = []
        for gap in range(1, max(1, min(self.longest, before_last - step)) + 1):
            following, rest = self.path(step + gap, price)
            paths.append((1 + price * self._squared(step, gap) + following, [gap, *rest]))
        return paths

    def _squared(self, step: int, gap: int) -> float:
        """Expected squared error of a gap, where the largest of one step has 1."""
        if gap == 1:
            return 0.0
        largest = max((self.expected(1.0, at, 2) for at in range(len(self.final) - 3)), default=0.0)
        return float(self.expected(1.0, step, gap) ** 2 / (largest**2 or 1.0))


Speeds = Callable[[int], Sequence[float]]
Left = Callable[[int, int, Sequence[float]], Sequence[float]]
"""What a gap from one full step to another leaves, given the speeds expected before it."""


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
            latest, before = shown[-1][0], list(policy._speeds)
            now = speeds(step)
            spent = spent or [0.0] * len(now)
            if step > latest + 1:
                gap = left(latest, step, before)
                spent = [math.hypot(one, other) for one, other in zip(spent, gap, strict=True)]
        shown.append((step, now, list(spent)))
        policy.observe(step, 0.5, 0.1, [*now, *spent, *[0.0] * len(spent)])
    return shown


def gaps(shown: Sequence[Shown]) -> list[int]:
    """Distances of full steps."""
    return [after - before for (before, *_), (after, *_) in itertools.pairwise(shown)]
