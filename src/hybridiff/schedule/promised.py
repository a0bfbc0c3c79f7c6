"""Promised switching: an error bound is spread over the run, and what gaps really cost is measured as it goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from ..numerics.estimate import REACTION, fading
from ..numerics.sensitivity import Sensitivity
from .gaps import GapPlan
from .kinds import Policy, StepKind

MOST_DECIBELS = 100.0
"""An estimate says no more: float32 itself is not nearer."""

ROUNDS = (
    "the network computes in a type so coarse that rounding alone may break the promise: promise less, or load the "
    "model in float32"
)
"""What is to be said where a half type leaves no room for what is promised."""

_BESIDE_ROUNDING = 0.5
"""Of the square of what rounding does, what gaps may spend in any case: less of it would not be seen."""

_LEAST_FULL = 3
"""Full steps before the first gap: a speed needs two, and the very first step is unlike all others."""

_SMOOTHING = 0.5
"""Weight of the last gap in what is learned of all gaps."""

_CLIP = (0.25, 4.0)
"""What one gap left of what was expected of it counts no further than this."""

_MOST_STAKED = 0.5
"""Share of the remaining squared bound that one gap may be expected to spend: the last ones can be made up by none."""

_MOST_AHEAD = 2.0
"""What a gap may be expected to spend, as a multiple of its part of the steps left: early expectations often fail."""


class PromisedPolicy(Policy):
    """Gaps as long as the error they are expected to leave in the final sample fits into what is left of a bound.

    With a gap of h steps after step i the last predictions are held while they go on changing at the speed seen; the
    correction that this will need is expected to be `speed * sum_r r s(i+r)`, a share of which is left (`REACTION`).
    What the last gaps really left, as estimated in hindsight, corrects the expectation, as an integral controller does.
    What is left of the (squared) bound is spent where it buys most (`gaps.GapPlan`), planned anew at every full step as
    if changes went on at that speed; but no gap may be expected to spend more than half of it, or than twice its part
    of the steps that are left. The worst image of a batch decides. The last two steps are full: what networks predict
    at the very end is unlike all before, and no hindsight can be had from it.

    Args:
        bound: Root mean square that the final sample may be off.
        sensitivity: How far each prediction moves the sample; of a linear scheduler.
        longest: Full steps are at most this far apart.
    """

    def __init__(self, bound: float, sensitivity: Sensitivity, longest: int) -> None:
        super().__init__(StepKind.CACHED)
        self.bound, self.longest = bound, longest
        self._final = [abs(value) for value in sensitivity.influence]
        self._places = sensitivity.places or range(len(self._final))
        self._plan = GapPlan(partial(self._expect, 1.0), len(self._final), longest)
        self._full_steps = 0
        self._latest, self._next = 0, 1
        self._speeds: Sequence[float] = ()  # at the latest full step, per image
        self._spent: list[float] = []
        self._rounded: list[float] = []  # what rounding will have done by the end
        self._factor: list[float] = []

    @property
    def estimated(self) -> float:
        """The estimated error of the worst image so far."""
        if self.tau1 is None:  # where no step was cached the same is rounded in the same way
            return self.spent_before
        return math.hypot(self.spent_before, max(map(math.hypot, self._spent, self._rounded), default=0.0))

    def notes(self) -> list[str]:
        is_broken = (1 + _BESIDE_ROUNDING) * max(self._rounded, default=0.0) ** 2 > self.bound**2
        return [ROUNDS] if is_broken and self.tau1 is not None else []

    def observe(self, step: int, discrepancy: float, drift: float, estimates: Sequence[float] = ()) -> None:
        images = len(estimates) // 3
        speeds, spent, self._rounded = (list(estimates[first : first + images]) for first in (0, images, 2 * images))
        self._learn(spent, step)
        distance, self._latest, self._speeds = max(1, step - self._latest), step, self._smoothed(speeds)
        self._full_steps += 1
        last = len(self._final) - 1
        room = self._room(step, distance) if self._full_steps >= _LEAST_FULL else 1
        self._next = step + room
        if room > 1 and self.tau1 is None:
            self.tau1 = step
        if step >= last and self.tau1 is not None and self.tau2 is None:
            self.tau2 = step

    def end_guidance(self, step: int) -> None:
        """Take it that all which was expected of the gap before a step is left, not a share of it."""
        left = [self._expect(speed, self._latest, step - self._latest) / REACTION for speed in self._speeds]
        self.spent_before = math.hypot(self.spent_before, max(left, default=0.0))

    def is_full(self, step: int) -> bool:
        return not self._latest < step < self._next

    def _smoothed(self, speeds: Sequence[float]) -> list[float]:
        """Geometric means with those before: what two neighbouring steps show of a speed is mostly noise."""
        products = [old * new for old, new in zip(self._speeds or speeds, speeds, strict=True)]
        return [math.sqrt(two) if 0 < two < math.inf else new for two, new in zip(products, speeds, strict=True)]

    def _learn(self, spent: list[float], step: int) -> None:
        """Compare what the gap before a step left with what was expected of it, which may have been cut short."""
        if not self._factor:
            self._factor, self._spent = [1.0] * len(spent), [0.0] * len(spent)
        self._factor = [factor**_SMOOTHING for factor in self._factor]  # what was learned is forgotten, too
        for row, speed in enumerate(self._speeds):
            expected = self._expect(speed, self._latest, step - self._latest)
            left = math.sqrt(max(0.0, spent[row] ** 2 - self._spent[row] ** 2))
            if expected > 0 and left > 0:
                ratio = min(max(left / expected, _CLIP[0]), _CLIP[1])
                self._factor[row] *= ratio**_SMOOTHING
        self._spent = spent

    def _room(self, step: int, distance: int) -> int:
        """How far the next full step may be from this one."""
        limit = min(self.longest, 2 * distance, len(self._final) - 2 - step)
        return max(1, min((self._room_of(row, step, limit) for row in range(len(self._speeds))), default=1))

    def _room_of(self, row: int, step: int, limit: int) -> int:
        """The same as far as one image decides."""
        rounded = self._rounded[row] ** 2
        whole = max(self.bound**2 - rounded, _BESIDE_ROUNDING * rounded)
        left = max(0.0, whole - self.spent_before**2 - self._spent[row] ** 2)
        scale = self._factor[row] * self._speeds[row]
        room = min(limit, self._plan.room(step, scale, left))
        while room > 1 and (scale * self._expect(1.0, step, room)) ** 2 > left * self._stake(step, room):
            room -= 1
        return room

    def _stake(self, step: int, room: int) -> float:
        """The share of what is left that a gap may be expected to spend."""
        return min(_MOST_STAKED, _MOST_AHEAD * room / (len(self._final) - 1 - step))

    def _expect(self, speed: float, step: int, room: int) -> float:
        here, places = self._places[step], self._places
        moved = speed * sum((places[ahead] - here) * self._final[ahead] for ahead in range(step + 1, step + room))
        return REACTION * moved * fading(step + room, len(self._final))


def estimated_fidelity(policy: Policy, decoder_gain: float) -> float:
    """What a run is estimated to have kept, in dB: of the worst image of the batch, at most `MOST_DECIBELS`."""
    error = policy.estimated * decoder_gain if isinstance(policy, PromisedPolicy) else 0.0
    return MOST_DECIBELS if error <= 10 ** (-MOST_DECIBELS / 20) else -20 * math.log10(error)


def error_bound(fidelity: float, decoder_gain: float) -> float:
    """Root mean square that the final sample may be off for a fidelity in dB of images with values from 0 to 1."""
    return float(10 ** (-fidelity / 20)) / decoder_gain
