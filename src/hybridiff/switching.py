"""In which phase a step runs: pure Python, the same on every rank from the same discrepancies."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
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
    each evaluates the outer stage on its own branch, and forecasts the inner one.
    """

    FULL = "full"
    PIPELINED = "pipelined"
    REUSE = "reuse"


class SwitchPolicy(ABC):
    """Decides, step by step, from the discrepancies seen so far.

    Attributes:
        tau1: Last step before the parallel stage, None until decided.
        tau2: Last step of the parallel stage, None until decided.
    """

    tau1: int | None = None
    tau2: int | None = None

    @abstractmethod
    def observe(self, step: int, discrepancy: float) -> None:
        """Take in the discrepancy of a full step."""

    def phase(self, step: int) -> Phase:
        """The phase of a step; final once all steps before it were observed."""
        if self.tau1 is None or step <= self.tau1:
            return Phase.WARM_UP
        return Phase.PARALLEL if self.tau2 is None or step <= self.tau2 else Phase.CONNECT

    def kind(self, step: int) -> StepKind:
        """How a step is shared."""
        return StepKind.PIPELINED if self.phase(step) is Phase.PARALLEL else StepKind.FULL

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

    def scaled(self, steps: int) -> PublishedSettings:
        """Settings given for 50 steps, for another number of steps."""
        ratio = steps / PUBLISHED_STEPS
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

    Raises:
        ValueError: the settings contradict each other, or the parallel stage could end after the last step.
    """

    def __init__(self, settings: PublishedSettings, steps: int) -> None:
        _check_settings(settings, steps)
        self.settings = settings
        self._discrepancies: list[float] = []
        self._flat_slopes = 0

    def observe(self, step: int, discrepancy: float) -> None:
        if self.tau1 is not None:
            return
        assert step == len(self._discrepancies), "every step up to tau1 is a full one"
        self._discrepancies.append(discrepancy)
        if self._is_flat(step):
            self._flat_slopes += 1
            self._start_after(step)
        elif step >= self.settings.tau_cap - 1:
            self._start_after(self.settings.tau_cap)

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
        self.tau1, self.tau2 = step, step + self.settings.parallel_steps


class FixedPolicy(SwitchPolicy):
    """A schedule known beforehand: between tau1 and tau2 every `interval`-th step is full, the others are not.

    Args:
        tau1: Last full step before the parallel stage.
        tau2: Last step of the parallel stage.
        interval: Distance of full steps (probes) in the parallel stage; 0 has none there.
        between: What the other steps are.
        steps: Number of steps of the run.

    Raises:
        ValueError: the settings contradict each other or the number of steps.
    """

    def __init__(self, tau1: int, tau2: int, interval: int, between: StepKind, steps: int) -> None:
        if not 0 <= tau1 <= tau2:
            raise ValueError(f"tau1 {tau1} and tau2 {tau2} must satisfy 0 <= tau1 <= tau2")
        if tau2 > steps - 1:
            raise ValueError(f"tau2 {tau2} lies beyond the last of {steps} steps ({steps - 1})")
        if interval < 0 or interval == 1:
            raise ValueError(
                f"an interval of {interval} leaves no step between full ones; use 2 or more, or 0 for none"
            )
        self.tau1, self.tau2 = tau1, tau2
        self._interval = interval
        self._between = between

    def observe(self, step: int, discrepancy: float) -> None:
        pass

    def kind(self, step: int) -> StepKind:
        assert self.tau1 is not None
        is_probe = self._interval > 0 and (step - self.tau1) % self._interval == 0
        return StepKind.FULL if self.phase(step) is not Phase.PARALLEL or is_probe else self._between


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
