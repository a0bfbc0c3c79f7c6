"""The published rule: the parallel phase starts where the slope of the discrepancy is flat; its length is fixed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from ...config import PublishedSettings
from ...errors import UsageError
from ...schedule.kinds import Policy, StepKind


class PublishedPolicy(Policy):
    """The rule of the published code.

    After step i with discrepancies m: from i >= L on, `slope = (m[i-L+1] - m[i]) / L`; where `0 <= slope < g`,
    tau1 = i. Otherwise tau1 = tau_cap once i >= tau_cap - 1. Steps tau1+1 .. tau1+k are pipelined. (The window spans
    L-1 steps though it divides by L, and a rise never counts as flat: both as in the authors' code.)

    Args:
        settings: The rule's settings, complete.
        steps: Number of steps of the run.

    Raises:
        UsageError: the parallel phase could end after the last step.
    """

    def __init__(self, settings: PublishedSettings, steps: int) -> None:
        super().__init__(StepKind.PIPELINED)
        self.settings = settings
        self._window, self._threshold, self._length, self._cap = settings.values
        last = self._cap + self._length
        if last > steps - 1:
            raise UsageError(
                f"tau_cap {self._cap} + parallel_steps {self._length} = {last} lies beyond the last of {steps} steps "
                f"({steps - 1}); lower one of them or use more steps"
            )
        self._steps = steps
        self._discrepancies: list[float] = []
        self._flat_slopes = 0

    def observe(self, step: int, discrepancy: float, drift: float, estimates: Sequence[float] = ()) -> None:
        if self.tau1 is not None:
            return
        unguided = step - len(self._discrepancies)  # while guidance was off nothing was seen
        self._discrepancies += [math.nan] * unguided + [discrepancy]
        if self._is_flat(step):
            self._flat_slopes += 1
            self._start_after(step)
        elif step >= self._cap - 1:
            self._start_after(max(step, self._cap))  # later where guidance was off at the cap

    def is_full(self, step: int) -> bool:
        return False

    def notes(self) -> list[str]:
        if self.tau1 is None or self._flat_slopes:
            return []
        seen = self._discrepancies
        if len(seen) <= self._window:
            return [f"tau_cap set tau1 = {self.tau1} before a slope over {self._window} steps could be taken"]
        if all(later > earlier for earlier, later in itertools.pairwise(seen)):
            shape = "rose at every step, where the slope rule cannot fire"
        elif all(later < earlier for earlier, later in itertools.pairwise(seen)):
            shape = f"fell at every step and never by less than {self._threshold:g} per step"
        else:
            shape = f"had no slope in [0, {self._threshold:g}) over {self._window} steps"
        return [f"the discrepancy {shape} up to step {len(seen) - 1}: tau_cap set tau1 = {self.tau1}"]

    def _is_flat(self, step: int) -> bool:
        if step < self._window:
            return False
        slope = (self._discrepancies[step - self._window + 1] - self._discrepancies[step]) / self._window
        return 0 <= slope < self._threshold

    def _start_after(self, step: int) -> None:
        self.tau1, self.tau2 = step, min(step + self._length, self._steps - 1)
