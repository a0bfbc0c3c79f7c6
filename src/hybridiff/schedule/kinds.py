"""In which phase a step runs: pure Python, the same on every rank from the same discrepancies."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

PUBLISHED_STEPS = 50
"""Number of steps for which the published settings are given."""


class Phase(str, Enum):
    """The three stages of a hybrid generation (Jung et al. 2026, Sec. 3)."""

    WARM_UP = "warm-up"
    PARALLEL = "parallel"
    CONNECT = "connect"


class StepKind(str, Enum):
    """How the ranks share a step.

    FULL: each evaluates the whole network on its own branch. PIPELINED: each evaluates a stage of one branch. REUSE:
    each evaluates the outer stage on its own branch, and forecasts the inner one. SKIPPED: no rank evaluates anything;
    all of them forecast both predictions.
    """

    FULL = "full"
    PIPELINED = "pipelined"
    REUSE = "reuse"
    SKIPPED = "skipped"


BETWEEN: dict[str, tuple[StepKind, ...]] = {
    "pipelined": (StepKind.PIPELINED,),
    "reuse": (StepKind.REUSE,),
    "skipped": (StepKind.SKIPPED,),
    "mixed": (StepKind.PIPELINED, StepKind.REUSE),
}
"""Kinds of the steps between full ones by name; several take turns, from the first step after a full one on."""


class SwitchPolicy(ABC):
    """Decides, step by step, from what full steps have shown so far.

    Args:
        between: Kinds of the steps between full ones; several take turns.

    Attributes:
        tau1: Last step before the parallel stage, None until decided.
        tau2: Last step of the parallel stage, None until decided.
    """

    tau1: int | None = None
    tau2: int | None = None

    def __init__(self, between: Sequence[StepKind] = (StepKind.PIPELINED,)) -> None:
        self.between = tuple(between)

    @abstractmethod
    def observe(self, step: int, discrepancy: float, drift: float) -> None:
        """Take in what a full step showed.

        Args:
            step: The step, from 0.
            discrepancy: How far the branches are apart (`guidance.discrepancy`).
            drift: How far the predictions moved since the full step before (`guidance.drift`).
        """

    def phase(self, step: int) -> Phase:
        """The phase of a step; final once all steps before it were observed."""
        if self.tau1 is None or step <= self.tau1:
            return Phase.WARM_UP
        return Phase.PARALLEL if self.tau2 is None or step <= self.tau2 else Phase.CONNECT

    def kind(self, step: int) -> StepKind:
        """How a step is shared."""
        if self.phase(step) is not Phase.PARALLEL:
            return StepKind.FULL
        distance = step - self.full_before(step)
        return self.between[(distance - 1) % len(self.between)] if distance else StepKind.FULL

    def full_before(self, step: int) -> int:
        """The latest full step up to a step of the parallel stage, itself included."""
        assert self.tau1 is not None
        return self.tau1

    def notes(self) -> list[str]:
        """Sentences for the user about what was decided."""
        return []


@dataclass(frozen=True)
class PublishedSettings:
    """Settings of the published rule; the paper's letters in brackets.

    Attributes:
        slope_window: Steps over which the slope is taken (L).
        slope_threshold: A slope in `[0, slope_threshold)` counts as flat (g).
        parallel_steps: Length of the parallel stage (k).
        tau_cap: The parallel stage starts after this step at the latest (tau_cap).
    """

    slope_window: int
    slope_threshold: float
    parallel_steps: int
    tau_cap: int

    def scaled(self, steps: int, given_for: int = PUBLISHED_STEPS) -> PublishedSettings:
        """Settings given for one number of steps, for another one."""
        ratio = steps / given_for
        slope_window = max(1, round(self.slope_window * ratio))
        # Few steps leave room for at least two full ones before the parallel stage.
        parallel_steps = max(1, min(steps - 2, round(self.parallel_steps * ratio)))
        latest = max(1, steps - 1 - parallel_steps)
        return PublishedSettings(
            slope_window=slope_window,
            slope_threshold=self.slope_threshold / ratio,
            parallel_steps=parallel_steps,
            tau_cap=min(latest, max(slope_window, round(self.tau_cap * ratio))),
        )

    def replaced(
        self,
        slope_window: int | None = None,
        slope_threshold: float | None = None,
        parallel_steps: int | None = None,
        tau_cap: int | None = None,
    ) -> PublishedSettings:
        """The settings with the user's own values, taken as they are, in place of scaled ones."""
        given: dict[str, Any] = {
            "slope_window": slope_window,
            "slope_threshold": slope_threshold,
            "parallel_steps": parallel_steps,
            "tau_cap": tau_cap,
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})


class PublishedPolicy(SwitchPolicy):
    """The published rule: start where the discrepancy's slope is flat, end a fixed number of steps later.

    After step i with discrepancies m: from i >= L on, `slope = (m[i-L+1] - m[i]) / L`; where `0 <= slope < g`,
    tau1 = i. Otherwise tau1 = tau_cap once i >= tau_cap - 1. Steps tau1+1 .. tau1+k are pipelined. (The window spans
    L-1 steps though it divides by L, and a rise never counts as flat: both as in the authors' code.)

    Args:
        settings: The rule's settings.
        steps: Number of steps of the run.
        between: Kinds of the steps of the parallel stage.

    Raises:
        ValueError: the settings contradict each other, or the parallel stage could end after the last step.
    """

    def __init__(
        self, settings: PublishedSettings, steps: int, between: Sequence[StepKind] = (StepKind.PIPELINED,)
    ) -> None:
        super().__init__(between)
        _check_settings(settings, steps)
        self.settings = settings
        self._steps = steps
        self._discrepancies: list[float] = []
        self._flat_slopes = 0

    def observe(self, step: int, discrepancy: float, drift: float) -> None:
        if self.tau1 is not None:
            return
        unguided = step - len(self._discrepancies)  # while guidance was off nothing was seen
        self._discrepancies += [math.nan] * unguided + [discrepancy]
        if self._is_flat(step):
            self._flat_slopes += 1
            self._start_after(step)
        elif step >= self.settings.tau_cap - 1:
            self._start_after(max(step, self.settings.tau_cap))  # later where guidance was off at the cap

    def notes(self) -> list[str]:
        if self.tau1 is None or self._flat_slopes:
            return []
        window, threshold = self.settings.slope_window, self.settings.slope_threshold
        seen = self._discrepancies
        if len(seen) <= window:
            return [f"tau_cap set tau1 = {self.tau1} before a slope over {window} steps could be taken"]
        if all(later > earlier for earlier, later in itertools.pairwise(seen)):
            shape = "rose at every step, where the slope rule cannot fire"
        elif all(later < earlier for earlier, later in itertools.pairwise(seen)):
            shape = f"fell at every step and never by less than {threshold:g} a step"
        else:
            shape = f"had no slope in [0, {threshold:g}) over {window} steps"
        return [f"the discrepancy {shape} up to step {len(seen) - 1}: tau_cap set tau1 = {self.tau1}"]

    def _is_flat(self, step: int) -> bool:
        window = self.settings.slope_window
        if step < window:
            return False
        slope = (self._discrepancies[step - window + 1] - self._discrepancies[step]) / window
        return 0 <= slope < self.settings.slope_threshold

    def _start_after(self, step: int) -> None:
        self.tau1, self.tau2 = step, min(step + self.settings.parallel_steps, self._steps - 1)


class FixedPolicy(SwitchPolicy):
    """A schedule known beforehand.

    Args:
        full: The full steps.
        steps: Number of steps of the run.
        between: Kinds of all other steps.

    Raises:
        ValueError: a full step lies beyond the last one, or the first step is not full.
    """

    def __init__(self, full: Iterable[int], steps: int, between: Sequence[StepKind] = (StepKind.PIPELINED,)) -> None:
        super().__init__(between)
        self._full = sorted(set(full))
        if not self._full or self._full[0] != 0:
            raise ValueError("step 0 must be a full step: nothing is known before it")
        if self._full[-1] > steps - 1:
            raise ValueError(f"full step {self._full[-1]} lies beyond the last of {steps} steps ({steps - 1})")
        others = sorted(set(range(steps)) - set(self._full))
        if others:
            self.tau1, self.tau2 = others[0] - 1, others[-1]

    def observe(self, step: int, discrepancy: float, drift: float) -> None:
        pass

    def full_before(self, step: int) -> int:
        return self._full[bisect_right(self._full, step) - 1]


def regular_schedule(tau1: int, tau2: int, interval: int, steps: int) -> list[int]:
    """The full steps of a schedule that has every `interval`-th step full between tau1 and tau2.

    Args:
        tau1: Last full step before the parallel stage.
        tau2: Last step of the parallel stage.
        interval: Distance of full steps in the parallel stage; 0 has none there.
        steps: Number of steps of the run.

    Raises:
        ValueError: the settings contradict each other or the number of steps.
    """
    if not 0 <= tau1 <= tau2:
        raise ValueError(f"tau1 {tau1} and tau2 {tau2} must satisfy 0 <= tau1 <= tau2")
    if tau2 > steps - 1:
        raise ValueError(f"tau2 {tau2} lies beyond the last of {steps} steps ({steps - 1})")
    if interval < 0 or interval == 1:
        raise ValueError(f"an interval of {interval} leaves no step between full ones; use 2 or more, or 0 for none")
    probes = range(tau1, tau2 + 1, interval) if interval else []
    return sorted({*range(tau1 + 1), *probes, *range(tau2 + 1, steps)})


@dataclass(frozen=True)
class GuidedSettings:
    """Settings of the guided rule.

    Attributes:
        tolerance: Drift that a step may have since the last full one, weighted by how far the step moves the sample.
        settled: The parallel stage opens once the discrepancy changes by no more than this share of it in a step.
        longest: Full steps are at most this far apart.
        patience: The parallel stage closes for good after this many full steps in a row that leave no room between.
    """

    tolerance: float
    settled: float = 0.4
    longest: int = 6
    patience: int = 4


class GuidedPolicy(SwitchPolicy):
    """Step-size control: how soon a full step follows depends on the drift that the last ones showed.

    The drift is taken to grow in proportion to the distance from the last full step. From a full step on, other steps
    follow as long as the drift expected of them, times their weight, stays within the tolerance; at most twice as many
    as before. The parallel stage opens (tau1) where the discrepancy has settled and the drift leaves room for the
    first step that is not full, and closes (tau2) where full steps show that they leave no room any more. The last
    step is always full.

    Args:
        settings: The rule's settings.
        weights: How far each step moves the sample, 1 on average (`influence.Influence.weights`).
        between: Kinds of the steps between full ones.
    """

    def __init__(
        self,
        settings: GuidedSettings,
        weights: Sequence[float],
        between: Sequence[StepKind] = (StepKind.SKIPPED,),
    ) -> None:
        super().__init__(between)
        self.settings = settings
        self._weights = weights
        self._latest = 0  # latest full step
        self._next = 1  # the full step after it
        self._discrepancy = float("inf")
        self._without_room = 0
        self._is_settled = False

    def observe(self, step: int, discrepancy: float, drift: float) -> None:
        if self.tau2 is not None:
            return
        self._is_settled = self._is_settled or self._changes_little(discrepancy)
        distance, self._latest, self._discrepancy = max(1, step - self._latest), step, discrepancy
        self._next = step + (self._room(step, distance, drift) if self._is_settled else 1)
        if self._next > step + 1:
            self._without_room = 0
            if self.tau1 is None:
                self.tau1 = step
        elif self.tau1 is not None:
            self._without_room += 1
            if self._without_room >= self.settings.patience or step >= len(self._weights) - 1:
                self.tau2 = step

    def kind(self, step: int) -> StepKind:
        return super().kind(step) if self._latest < step < self._next else StepKind.FULL

    def full_before(self, step: int) -> int:
        return self._latest

    def _changes_little(self, discrepancy: float) -> bool:
        return abs(discrepancy - self._discrepancy) <= self.settings.settled * discrepancy

    def _room(self, step: int, distance: int, drift: float) -> int:
        """How far the next full step may lie from this one."""
        limit = min(self.settings.longest, 2 * distance, len(self._weights) - 1 - step)
        room = 1
        while room < limit and self._is_tolerable(drift * room / distance * self._weights[step + room]):
            room += 1
        return room

    def _is_tolerable(self, drift: float) -> bool:
        return drift <= self.settings.tolerance  # not so for NaN


def _check_settings(settings: PublishedSettings, steps: int) -> None:
    for name in ("slope_window", "parallel_steps", "tau_cap"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(settings, name)}")
    if not settings.slope_threshold > 0:  # nor NaN
        raise ValueError(f"slope_threshold must be above 0, got {settings.slope_threshold:g}")
    last = settings.tau_cap + settings.parallel_steps
    if last > steps - 1:
        raise ValueError(
            f"tau_cap {settings.tau_cap} + parallel_steps {settings.parallel_steps} = {last} lies beyond the last of "
            f"{steps} steps ({steps - 1}); lower one of them or use more steps"
        )
