"""Schedules: as letters, one per step, and as the text of their full steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def typical_schedule(schedules: Sequence[str]) -> list[int]:
    """The full steps of the schedule that is most like the others, among those with the median number of full steps.

    Args:
        schedules: One letter per step, f for a full one; all of one length.
    """
    median = statistics.median_low(schedule.count("f") for schedule in schedules)
    candidates = [schedule for schedule in schedules if schedule.count("f") == median]
    nearest = min(candidates, key=lambda schedule: sum(_difference(schedule, other) for other in schedules))
    return [step for step, letter in enumerate(nearest) if letter == "f"]


def regular_schedule(tau1: int, tau2: int, interval: int, steps: int) -> list[int]:
    """The full steps where between tau1 and tau2 every `interval`-th step is full, and all are outside."""
    return sorted({*range(tau1), *range(tau1, tau2 + 1, interval), *range(tau2 + 1, steps)})


def steps_as_text(steps: Iterable[int]) -> str:
    """Steps in order as `ParallelConfig.full_steps` says them: `0-4,8,11`."""
    runs: list[list[int]] = []
    for step in steps:
        if runs and step == runs[-1][-1] + 1:
            runs[-1].append(step)
        else:
            runs.append([step])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _difference(schedule: str, other: str) -> int:
    """In how many steps one schedule is full and the other is not."""
    return sum((ours == "f") != (theirs == "f") for ours, theirs in zip(schedule, other, strict=True))
