"""The ideal time of a recorded schedule: the one place where ideal speed-ups come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .switching import StepKind

SERIAL_STEP = 2.0
"""Cost of a guided step on one device, in evaluations of one branch: a batch of two costs twice a batch of one."""


@dataclass(frozen=True)
class StageCosts:
    """Costs measured alone, as shares of one evaluation of one branch by the whole network.

    Attributes:
        outer: The outer stage (o).
        inner: The inner stage (n).
    """

    outer: float
    inner: float


HALVES = StageCosts(0.5, 0.5)


def critical_path(kinds: Iterable[StepKind], costs: StageCosts = HALVES) -> float:
    """Ideal time of a schedule, in evaluations of a device's share of the batch by the whole network.

    A full step costs 1, a reuse step the outer stage, o, a skipped one nothing. Of a group of P pipelined steps the
    first one waits for the outer stage only, as it goes on with the inner result that the step before left behind;
    every further one waits for the slower stage: `o + (P - 1) max(o, n)`. Messages cost nothing here.

    Args:
        kinds: How each step was shared, in order.
        costs: Measured costs of the stages.
    """
    time, previous = 0.0, StepKind.FULL
    for kind in kinds:
        if kind is StepKind.SKIPPED:
            continue
        if kind is StepKind.FULL:
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
    devices: int = 2,
    serial_step: float = SERIAL_STEP,
    unguided: int = 0,
) -> float:
    """Time of the serial generation divided by the critical path of the schedule.

    Args:
        kinds: How each guided step was shared, in order.
        costs: Measured costs of the stages.
        devices: Number of devices; a single one evaluates both branches as one batch, more than two split batches.
        serial_step: Cost of a step on one device in evaluations of one branch (rho).
        unguided: Number of steps without guidance, which have one branch only and count as no faster than serial ones.
    """
    evaluation = serial_step if devices == 1 else 1.0
    return (serial_step * len(kinds) + unguided) / (evaluation * critical_path(kinds, costs) + unguided)
