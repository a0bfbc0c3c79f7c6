"""Kinds of steps and phases of a generation, and what decides which step is of which kind."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from enum import StrEnum


class Phase(StrEnum):
    """The three phases of a hybrid generation (Jung et al. 2026, Sec. 3)."""

    WARM_UP = "warm-up"
    PARALLEL = "parallel"
    CONNECT = "connect"


class StepKind(StrEnum):
    """How the ranks share a step.

    FULL: each evaluates the whole network on its own branch. PIPELINED: each evaluates a stage. REUSE: each evaluates
    the outer stage on its own branch, and extrapolates the inner one. CACHED: no rank evaluates anything; all of them
    answer with earlier predictions. AHEAD: each evaluates the whole network on a step of its own, this one or later.
    """

    FULL = "full"
    PIPELINED = "pipelined"
    REUSE = "reuse"
    CACHED = "cached"
    AHEAD = "ahead"


class Policy(ABC):
    """Decides, step by step, from what full steps have shown so far; pure Python, the same on every rank.

    Args:
        step_kind: Kind of the steps that are not full.

    Attributes:
        tau1: Last step before the parallel phase, None until decided.
        tau2: Last step of the parallel phase, None until decided.
        spent_before: Error that steps before its own leave in the final sample, where one is promised.
    """

    tau1: int | None = None
    tau2: int | None = None
    spent_before: float = 0.0

    def __init__(self, step_kind: StepKind) -> None:
        self.step_kind = step_kind

    def observe(  # noqa: B027 - schedules may be known beforehand
        self, step: int, discrepancy: float, drift: float, estimates: Sequence[float] = ()
    ) -> None:
        """Take in what a full step showed.

        Args:
            step: The step, from 0.
            discrepancy: How far the branches are apart (`guidance.discrepancy`).
            drift: How far the predictions moved since the full step before (`guidance.drift`).
            estimates: See `StepExecutor.measure`.
        """

    def end_guidance(self, step: int) -> None:  # noqa: B027 - most promise nothing
        """Guidance ends with a step: what cached steps before it got wrong of the other branches, nothing will show."""

    @abstractmethod
    def is_full(self, step: int) -> bool:
        """Whether a step of the parallel phase is full."""

    def phase(self, step: int) -> Phase:
        """The phase of a step; final once all steps before it were observed."""
        if self.tau1 is None or step <= self.tau1:
            return Phase.WARM_UP
        return Phase.PARALLEL if self.tau2 is None or step <= self.tau2 else Phase.CONNECT

    def kind(self, step: int) -> StepKind:
        """How a step is shared; likewise."""
        return StepKind.FULL if self.phase(step) is not Phase.PARALLEL or self.is_full(step) else self.step_kind

    def notes(self) -> list[str]:
        """Sentences for the user about what was decided."""
        return []
