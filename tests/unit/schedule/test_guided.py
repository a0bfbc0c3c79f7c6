"""The guided rule, against a statement of it of our own, and in what it promises."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.schedule.guided import PATIENCE, SETTLED_CHANGE, GuidedPolicy
from hybridiff.schedule.kinds import Phase, StepKind
from support.guided import Drift, GuidedByHand, generate, path, steady


def policy_of(
    tolerance: Any, weights: list[Any], longest: int = 6, step_kind: StepKind = StepKind.CACHED
) -> GuidedPolicy:
    return GuidedPolicy(tolerance, longest, weights, step_kind)


def guided_steps(steps: int, drift: Drift, discrepancies: list[Any] | None = None, **settings: Any) -> list[int]:
    """The full steps of a generation whose steps all move the sample alike."""
    policy = policy_of(weights=[1.0] * steps, **settings)
    return [step for step, *_ in generate(policy, discrepancies or [1.0] * steps, drift)[0]]


# Fractions: both statements of the rule compute exactly, so that no threshold is a matter of rounding.
eighths = st.integers(0, 24).map(lambda number: Fraction(number, 8))
numbers = st.one_of(eighths, eighths, eighths, st.sampled_from([math.inf, math.nan]))


@dataclass
class Generation:
    """Settings, and for each step its weight, its discrepancy and how far the predictions move in it."""

    tolerance: Fraction
    longest: int
    weights: list[Fraction]
    discrepancies: list[Any]
    moves: list[Any]

    def policy(self, step_kind: StepKind = StepKind.CACHED) -> GuidedPolicy:
        return policy_of(self.tolerance, self.weights, self.longest, step_kind)


@st.composite
def generations(draw: st.DrawFn) -> Generation:
    steps = draw(st.integers(3, 30))
    calm = draw(st.booleans())  # so that long gaps, and what follows them, are common too
    moves = draw(st.lists(eighths if calm else numbers, min_size=steps, max_size=steps))
    return Generation(
        tolerance=draw(eighths) / 4,
        longest=draw(st.integers(1, 8)),
        weights=draw(st.lists(eighths, min_size=steps, max_size=steps)),
        discrepancies=[Fraction(1)] * steps if calm else draw(st.lists(numbers, min_size=steps, max_size=steps)),
        moves=[move / 16 for move in moves],
    )


def test_the_constants_of_the_rule() -> None:
    """Other values make other images: what calibrations measured rests on these."""
    assert (SETTLED_CHANGE, PATIENCE) == (0.4, 4)


@given(generations())
def test_the_rule(generation: Generation) -> None:
    policy = generation.policy()
    shown, _ = generate(policy, generation.discrepancies, path(generation.moves))
    by_hand = GuidedByHand(generation.tolerance, generation.longest, generation.weights)
    expected = by_hand.run(generation.discrepancies, path(generation.moves))
    assert [step for step, *_ in shown] == [step for step, *_ in expected]
    assert (policy.tau1, policy.tau2) == by_hand.taus(expected)


@given(generations(), st.sampled_from([StepKind.CACHED, StepKind.REUSE]))
def test_what_always_holds(generation: Generation, step_kind: StepKind) -> None:
    policy, steps = generation.policy(step_kind), len(generation.weights)
    kinds = []
    for step, discrepancy in enumerate(generation.discrepancies):
        kinds.append(policy.kind(step))
        if kinds[-1] is StepKind.FULL:
            policy.observe(step, discrepancy, generation.moves[step])

    full = [step for step, kind in enumerate(kinds) if kind is StepKind.FULL]
    assert full[:2] == [0, 1]
    assert full[-2:] == [steps - 2, steps - 1]
    gaps = [1, *(after - before for before, after in itertools.pairwise(full))]
    assert max(gaps) <= max(1, generation.longest)
    assert all(after <= 2 * before for before, after in itertools.pairwise(gaps))
    assert set(kinds) <= {StepKind.FULL, step_kind}


@given(generations())
def test_a_phase_is_final_once_the_steps_before_it_were_seen(generation: Generation) -> None:
    policy, steps = generation.policy(), len(generation.weights)
    shown, told = generate(policy, generation.discrepancies, path(generation.moves))
    assert told == [policy.phase(step) for step in range(steps)]
    full = {step for step, *_ in shown}
    assert all(told[step] is Phase.PARALLEL for step in range(steps) if step not in full)


@given(st.integers(3, 40), eighths, eighths, eighths, st.integers(1, 8))
def test_a_larger_tolerance_needs_no_more_full_steps(
    steps: int, speed: Fraction, tolerance: Fraction, more: Fraction, longest: int
) -> None:
    for drift in (steady(speed), lambda before, after: speed):  # grows with the distance, or is the same at any
        few = guided_steps(steps, drift, tolerance=tolerance + more, longest=longest)
        assert len(few) <= len(guided_steps(steps, drift, tolerance=tolerance, longest=longest))


@pytest.mark.parametrize("drift", [math.nan, math.inf, -math.nan])
def test_a_drift_that_is_no_number_leaves_no_room(drift: float) -> None:
    assert guided_steps(12, steady(drift), tolerance=1e9) == list(range(12))
    broken = lambda before, after: drift if after == 7 else 0.1  # noqa: E731
    full = guided_steps(16, broken, tolerance=1e9)
    assert full == [0, 1, 3, 7, 8, 10, 14, 15]  # gaps of 2 and 4; after step 7 from 1 on again


def test_a_tolerance_of_zero_leaves_no_room_as_long_as_anything_moves() -> None:
    assert guided_steps(12, steady(1e-9), tolerance=0.0) == list(range(12))


def test_gaps_grow_to_what_the_tolerance_has_room_for() -> None:
    # Two steps ahead the drift is 0.2, three steps ahead 0.3: with 0.25 two steps may follow a full one.
    assert guided_steps(14, steady(0.1), tolerance=0.25) == [0, 1, 3, 6, 9, 12, 13]
    assert guided_steps(14, steady(0.1), tolerance=0.25, longest=2) == [0, 1, 3, 5, 7, 9, 11, 12, 13]
    assert guided_steps(14, steady(0.1), tolerance=0.09) == list(range(14))
    assert guided_steps(24, steady(0.1), tolerance=9.0) == [0, 1, 3, 7, 13, 19, 22, 23]


def test_a_step_that_moves_the_sample_far_is_full() -> None:
    weights = [1.0] * 7 + [9.0] + [1.0] * 6
    policy = policy_of(0.35, weights)
    shown, _ = generate(policy, [1.0] * 14, steady(0.1))
    assert [step for step, *_ in shown] == [0, 1, 3, 7, 11, 12, 13]  # step 7 itself; without it as 0.35 allows
    heavier = [1.0] * 6 + [9.0] + [1.0] * 7
    policy = policy_of(0.35, heavier)
    shown, _ = generate(policy, [1.0] * 14, steady(0.1))
    assert [step for step, *_ in shown] == [0, 1, 3, 6, 10, 12, 13]


def test_the_parallel_phase_opens_once_the_discrepancy_has_settled() -> None:
    # It changes by 1/2, 2/3, 1/2 and 1/3 of what it then is.
    discrepancies = [6.0, 4.0, 2.4, 1.6, 1.2, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0]
    policy = policy_of(9.0, [1.0] * 11)
    shown, _ = generate(policy, discrepancies, steady(0.1))
    assert [step for step, *_ in shown] == [0, 1, 2, 3, 4, 6, 9, 10]  # what comes later does not unsettle it
    assert (policy.tau1, policy.tau2) == (4, 10)


def test_full_steps_without_room_close_the_parallel_phase_for_good() -> None:
    """A jolt, from step 5 on: four full steps in a row leave no room."""
    moves = [0.0] * 5 + [9.0] * PATIENCE + [0.0] * 11
    policy = policy_of(0.1, [1.0] * 20, longest=2)
    shown, _ = generate(policy, [1.0] * 20, path(moves))
    assert (policy.tau1, policy.tau2) == (1, 8)
    assert [step for step, *_ in shown] == [0, 1, 3, *range(5, 20)]


@pytest.mark.parametrize("jolt", [1, 2, 3])
def test_too_few_of_them_leave_it_open(jolt: int) -> None:
    moves = [0.0] * 5 + [9.0] * jolt + [0.0] * 15
    policy = policy_of(0.1, [1.0] * 20, longest=2)
    shown, _ = generate(policy, [1.0] * 20, path(moves))
    assert (policy.tau1, policy.tau2) == (1, 19)
    calm = range(5 + jolt, 19, 2)
    assert [step for step, *_ in shown] == sorted({0, 1, 3, *range(5, 5 + jolt), *calm, 18, 19})


def test_steps_without_guidance_lie_between_full_ones_like_others() -> None:
    """Guidance off in steps 3 to 5: what step 6 shows has taken five steps to come about."""
    policy = policy_of(0.1, [1.0] * 20, longest=8)
    for step in (0, 1):
        policy.observe(step, 1.0, 9.0)
    policy.observe(6, 1.0, 0.15)  # 0.03 a step: three steps may follow
    assert [policy.kind(step) is StepKind.FULL for step in range(7, 12)] == [False, False, False, True, True]
