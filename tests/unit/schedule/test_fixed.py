"""Schedules that are known beforehand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridiff import Phase, UsageError
from hybridiff.schedule.fixed import FixedPolicy
from hybridiff.schedule.kinds import StepKind
from support.guided import generate, steady


@given(st.sets(st.integers(1, 20)), st.integers(0, 5), st.sampled_from([StepKind.CACHED, StepKind.REUSE]))
def test_a_fixed_schedule_is_what_it_is_given(others: set[int], more: int, step_kind: StepKind) -> None:
    steps = max(others, default=0) + 1 + more
    full = [step for step in range(steps) if step not in others]
    policy = FixedPolicy(full, steps, step_kind)
    shown, phases = generate(policy, [1.0] * steps, steady(math.nan))
    assert [step for step, *_ in shown] == full
    assert (policy.tau1, policy.tau2) == ((min(others) - 1, max(others)) if others else (None, None))
    assert {step for step, phase in enumerate(phases) if phase is Phase.PARALLEL} >= others
    assert all(policy.kind(step) is step_kind for step in others)


@pytest.mark.parametrize("steps", [1, 2, 12])
def test_every_step_full(steps: int) -> None:
    policy = FixedPolicy.all_full(steps)
    assert {policy.kind(step) for step in range(steps)} == {StepKind.FULL}
    assert (policy.tau1, policy.tau2) == (None, None)


@pytest.mark.parametrize(
    ("full", "message"),
    [
        ([], "full_steps must have step 0: nothing is known before it"),
        ([1, 2], "full_steps must have step 0"),
        ([0, 9, 10], r"full step 10 lies beyond the last of 10 steps \(9\)"),
    ],
)
def test_fixed_schedules_that_cannot_be(full: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FixedPolicy(full, 10)
