"""Kinds of steps, phases, and what every policy makes of its taus."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.schedule.kinds import Phase, Policy, StepKind


class Decided(Policy):
    """A policy that has decided, with some full steps in its parallel phase."""

    def __init__(self, tau1: int | None, tau2: int | None, full: set[int], step_kind: StepKind) -> None:
        super().__init__(step_kind)
        self.tau1, self.tau2, self.full = tau1, tau2, full

    def observe(self, step: int, discrepancy: float, drift: float) -> None:
        raise AssertionError("nothing is left to decide")

    def is_full(self, step: int) -> bool:
        return step in self.full


@pytest.mark.parametrize("member", [*Phase, *StepKind])
def test_phases_and_kinds_stand_in_json_by_their_names(member: Phase | StepKind) -> None:
    assert json.loads(json.dumps(member)) == member.value


def test_no_two_kinds_have_the_same_initial() -> None:
    """Schedules are written with one letter a step."""
    assert len({kind.value[0] for kind in StepKind}) == len(StepKind)


@pytest.mark.parametrize(
    ("tau1", "tau2", "phases"),
    [
        (None, None, "wwwwww"),
        (2, None, "wwwppp"),
        (2, 4, "wwwppc"),
        (0, 5, "wppppp"),
        (2, 2, "wwwccc"),
        (5, 5, "wwwwww"),
    ],
)
def test_phases(tau1: int | None, tau2: int | None, phases: str) -> None:
    policy = Decided(tau1, tau2, set(), StepKind.CACHED)
    assert "".join(policy.phase(step).value[0] for step in range(6)) == phases


@given(
    st.integers(0, 9),
    st.integers(0, 9),
    st.sets(st.integers(0, 11)),
    st.sampled_from([StepKind.CACHED, StepKind.REUSE, StepKind.PIPELINED]),
)
def test_only_steps_of_the_parallel_phase_are_of_another_kind(
    tau1: int, length: int, full: set[int], step_kind: StepKind
) -> None:
    policy = Decided(tau1, tau1 + length, full, step_kind)
    for step in range(12):
        is_other = policy.phase(step) is Phase.PARALLEL and step not in full
        assert policy.kind(step) is (step_kind if is_other else StepKind.FULL)
    assert policy.notes() == []
