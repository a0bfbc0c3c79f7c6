"""Where a network is cut into an outer and an inner stage, and what that costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

TIE = 0.02
"""Cuts whose larger stage is this near to the best, as a share of the network, count as equally balanced."""


@dataclass(frozen=True)
class Unit:
    """The smallest piece that a cut does not divide.

    Attributes:
        name: Path of the module in the network.
        block: Path of the block that holds it, None where it is a block itself.
    """

    name: str
    block: str | None


@dataclass(frozen=True)
class Cut:
    """A nested cut.

    Attributes:
        entry: Index of the last outer unit before the inner stage.
        exit: Index of the last inner unit.
    """

    entry: int
    exit: int

    def is_inner(self, unit: int) -> bool:
        """Whether a unit belongs to the inner stage."""
        return self.entry < unit <= self.exit


@dataclass(frozen=True)
class UnitCost:
    """What a measurement says of one unit.

    Attributes:
        seconds: Time of one evaluation of one branch.
        bytes: Size of its output tensors, without skip connections.
        work: Floating-point operations of one evaluation of one branch.
    """

    seconds: float
    bytes: int
    work: int


@dataclass(frozen=True)
class StagePlan:
    """A cut with its costs.

    Attributes:
        cut: Where the network is cut.
        entry: Name of the last outer unit before the inner stage.
        exit: Name of the last inner unit.
        outer: Cost of the outer stage as a share of a whole evaluation.
        inner: Cost of the inner stage, likewise; what neither stage shares (embeddings) counts in both.
        seconds: Time of a whole evaluation of one branch.
        down_bytes: Size of the boundary from the outer stage to the inner one.
        up_bytes: Size of the boundary back.
        outer_work: Counted work of the outer stage as a share of a whole evaluation: what cuts are chosen by, as it is
            the same on every machine and at every call.
        inner_work: That of the inner stage, likewise.
    """

    cut: Cut
    entry: str
    exit: str
    outer: float
    inner: float
    seconds: float
    down_bytes: int
    up_bytes: int
    outer_work: float
    inner_work: float

    @property
    def larger(self) -> float:
        """Work of the larger stage: what a pipelined step waits for."""
        return max(self.outer_work, self.inner_work)


def plan_cut(
    cut: Cut, units: Sequence[Unit], costs: Sequence[UnitCost], around: float, work_around: int = 0
) -> StagePlan:
    """The plan of a cut.

    Args:
        cut: The cut.
        units: Units of the network.
        costs: A cost a unit.
        around: Time of what lies outside the units: embeddings and the like, which the forward of either stage runs.
        work_around: Floating-point operations of the same.
    """
    inner = sum(cost.seconds for i, cost in enumerate(costs) if cut.is_inner(i))
    whole = sum(cost.seconds for cost in costs) + around
    inner_work = sum(cost.work for i, cost in enumerate(costs) if cut.is_inner(i))
    whole_work = sum(cost.work for cost in costs) + work_around
    return StagePlan(
        cut=cut,
        entry=units[cut.entry].name,
        exit=units[cut.exit].name,
        outer=(whole - inner) / whole,
        inner=(inner + around) / whole,
        seconds=whole,
        down_bytes=costs[cut.entry].bytes,
        up_bytes=costs[cut.exit].bytes,
        outer_work=(whole_work - inner_work) / whole_work,
        inner_work=(inner_work + work_around) / whole_work,
    )


def choose_balanced(plans: Sequence[StagePlan]) -> StagePlan:
    """The plan whose larger stage has least work; among equals the one that sends fewest bytes.

    Raises:
        ValueError: there is no plan: the network is too small to be cut.
    """
    if not plans:
        raise ValueError("the network is too small to be cut into an outer and an inner stage")
    best = min(plan.larger for plan in plans)
    equal = [plan for plan in plans if plan.larger <= best + TIE]
    return min(equal, key=lambda plan: (plan.down_bytes + plan.up_bytes, plan.larger))


def choose_share(plans: Sequence[StagePlan], share: float) -> StagePlan:
    """The plan whose outer stage's work is nearest to a share of a whole evaluation; among equals the fewest bytes.

    Raises:
        ValueError: there is no plan: the network is too small to be cut.
    """
    if not plans:
        raise ValueError("the network is too small to be cut into an outer and an inner stage")
    best = min(abs(plan.outer_work - share) for plan in plans)
    equal = [plan for plan in plans if abs(plan.outer_work - share) <= best + TIE]
    return min(equal, key=lambda plan: (plan.down_bytes + plan.up_bytes, abs(plan.outer_work - share)))
