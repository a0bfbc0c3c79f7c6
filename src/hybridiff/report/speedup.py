"""The ideal time of a recorded schedule: the one place where ideal speed-ups come from."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..schedule.kinds import StepKind


@dataclass(frozen=True)
class StageCosts:
    """Costs measured alone, as shares of one evaluation of one branch by the whole network.

    Attributes:
        outer: The outer stage (o).
        inner: The inner stage (n); the slowest one where there are several.
    """

    outer: float
    inner: float

    @classmethod
    def of(cls, stages: Mapping[str, Any], shards: Mapping[str, Any] | None = None) -> StageCosts:
        """Those of a report: of two stages, or the largest of several that wait for each other; halves where empty.

        Args:
            stages: What the report says of stages.
            shards: What it says of ranks that share an image: the outer stage of a part as a share of the whole part.
        """
        largest = stages.get("largest", 0.5)
        outer = stages.get("outer", largest)
        if shards and "outer" in shards:
            outer = shards["outer"]["share"] / shards["share"]
        return cls(outer, stages.get("inner", largest))


HALVES = StageCosts(0.5, 0.5)


@dataclass(frozen=True)
class RowPartition:
    """How the rows of a guided step were shared; a row is one image of one branch.

    Attributes:
        rows: Rows of the step, all branches together.
        largest: Most rows that one device evaluates; the others wait for it.
        largest_extra: The same of an extra evaluation, which has the rows of one branch; None where it was not split.
        branches: Guidance branches of the step.
        shards: Devices that evaluate the same rows together, each a part of the picture.
    """

    rows: int
    largest: int
    largest_extra: int | None = None
    branches: int = 2
    shards: int = 1

    @property
    def is_whole(self) -> bool:
        """Whether one device evaluates all branches as one batch."""
        return self.largest == self.rows and self.shards == 1

    @property
    def evaluations(self) -> float:
        """The largest share, in evaluations of one branch by all images: less than 1 where images are split or cut."""
        return self.branches * self.largest / (self.rows * self.shards)

    @property
    def extra_branches(self) -> float:
        """The same of an extra evaluation: 1 where every device evaluates it by itself."""
        return 1.0 if self.largest_extra is None else self.branches * self.largest_extra / self.rows


BRANCH_EACH = RowPartition(rows=2, largest=1)


def critical_path(kinds: Iterable[StepKind], costs: StageCosts = HALVES) -> float:
    """Ideal time of a schedule, in evaluations of a device's share of the batch by the whole network.

    A full step and one ahead cost 1, a reuse step the outer stage, o, a cached one nothing. Of a group of P pipelined
    steps the first one waits for the outer stage only, as it goes on with the inner result that the step before left
    behind; every further one waits for the slower stage: `o + (P - 1) max(o, n)`. Messages between steps cost
    nothing here.

    Args:
        kinds: How each step was shared, in order.
        costs: Measured costs of the stages.
    """
    time, previous = 0.0, StepKind.FULL
    for kind in kinds:
        if kind is StepKind.CACHED:
            continue
        if kind in (StepKind.FULL, StepKind.AHEAD):
            time += 1.0
        elif kind is previous is StepKind.PIPELINED:
            time += max(costs.outer, costs.inner)
        else:
            time += costs.outer
        previous = kind
    return time


def ideal_speedup(
    kinds: Sequence[StepKind],
    costs: StageCosts = HALVES,
    partition: RowPartition = BRANCH_EACH,
    serial_step: float | None = None,
    unguided: Sequence[StepKind] = (),
    extra: int = 0,
    share: float | None = None,
) -> float:
    """Time of the serial generation divided by the critical path of the schedule.

    Args:
        kinds: How each guided step was shared, in order.
        costs: Measured costs of the stages.
        partition: How the rows of the guided steps were shared.
        serial_step: Cost of a step on one device in evaluations of one branch (rho); as many as branches unless given.
        unguided: How each step without guidance was shared, which has one branch only; a full one counts as no faster
            than a serial one.
        extra: Number of extra evaluations of one branch, in steps of whatever kind (skip-layer guidance).
        share: Time that an evaluation takes the devices that share it, as a share of what it takes one of them,
            messages and what all compute alike included; 1 / shards unless measured.
    """
    serial_step = float(partition.branches) if serial_step is None else serial_step
    evaluation = serial_step if partition.is_whole else partition.evaluations
    evaluation *= 1.0 if share is None else share * partition.shards
    serial = serial_step * len(kinds) + len(unguided) + extra
    alone = critical_path(unguided, costs) + partition.extra_branches * extra
    return serial / (evaluation * critical_path(kinds, costs) + alone)


def mean_speedup(speedups: Iterable[float | None]) -> float:
    """The speed-up of several generations, one after the other: images over the time of all of them.

    Args:
        speedups: Of generations that take one device equally long each; None where one is serial.
    """
    return statistics.harmonic_mean([1.0 if speedup is None else speedup for speedup in speedups])


def evaluated_steps(schedule: str) -> int:
    """In how many steps of a schedule some rank evaluates the whole network: those that are f(ull), or a(head)."""
    return schedule.count("f") + schedule.count("a")
