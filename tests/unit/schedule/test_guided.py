"""Guided and fixed switching: the first against a statement of it of our own, both in what they promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.schedule.kinds import (
    BETWEEN,
    FixedPolicy,
    GuidedPolicy,
    GuidedSettings,
    Phase,
    StepKind,
    SwitchPolicy,
    regular_schedule,
)
from support.guided import GuidedByHand, Shown

Drift = Callable[[int, int], Any]


def generate(policy: SwitchPolicy, discrepancies: list[Any], drift: Drift) -> tuple[list[Shown], list[Phase]]:
    """A generation: what its full steps showed, and the phase of every step as it was before the step ran."""
    shown: list[Shown] = []
    phases = []
    for step, discrepancy in enumerate(discrepancies):
        phases.append(policy.phase(step))
        if policy.kind(step) is StepKind.FULL:
            moved = drift(shown[-1][0], step) if shown else math.nan
            shown.append((step, discrepancy, moved))
            policy.observe(*shown[-1])
    return shown, phases


def steady(speed: Any) -> Drift:
    """Predictions that move by the same amount in every step."""
    return lambda before, after: speed * (after - before)


def guided_steps(steps: int, drift: Drift, discrepancies: list[Any] | None = None, **settings: Any) -> list[int]:
    """The full steps of a generation whose steps all move the sample alike."""
    policy = GuidedPolicy(GuidedSettings(**settings), [1.0] * steps)
    return [step for step, *_ in generate(policy, discrepancies or [1.0] * steps, drift)[0]]


# Fractions: both statements of the rule compute exactly, so that no threshold is a matter of rounding.
eighths = st.integers(0, 24).map(lambda number: Fraction(number, 8))
numbers = st.one_of(eighths, eighths, eighths, st.sampled_from([math.inf, math.nan]))


@st.composite
def generations(draw: st.DrawFn) -> tuple[GuidedSettings, list[Fraction], list[Any], list[Any]]:
    """Settings, and for each step its weight, its discrepancy and how far the predictions move in it."""
    steps = draw(st.integers(3, 30))
    settings = GuidedSettings(
        tolerance=draw(eighths) / 4,  # type: ignore[arg-type]
        settled=draw(eighths) / 8,  # type: ignore[arg-type]
        longest=draw(st.integers(1, 8)),
        patience=draw(st.integers(1, 4)),
    )
    weights = draw(st.lists(eighths, min_size=steps, max_size=steps))
    calm = draw(st.booleans())  # so that long gaps, and what follows them, are common too
    discrepancies = [Fraction(1)] * steps if calm else draw(st.lists(numbers, min_size=steps, max_size=steps))
    moves = [move / 16 for move in draw(st.lists(eighths if calm else numbers, min_size=steps, max_size=steps))]
    return settings, weights, discrepancies, moves


def path(moves: list[Any]) -> Drift:
    return lambda before, after: sum(moves[before + 1 : after + 1])


@given(generations())
def test_the_rule(generation: tuple[GuidedSettings, list[Fraction], list[Any], list[Any]]) -> None:
    settings, weights, discrepancies, moves = generation
    policy = GuidedPolicy(settings, weights)  # type: ignore[arg-type]
    shown, _ = generate(policy, discrepancies, path(moves))
    by_hand = GuidedByHand(settings.tolerance, settings.settled, settings.longest, settings.patience, weights)
    expected = by_hand.run(discrepancies, path(moves))
    assert [step for step, *_ in shown] == [step for step, *_ in expected]
    assert (policy.tau1, policy.tau2) == by_hand.taus(expected)


@given(generations(), st.sampled_from(sorted(BETWEEN)))
def test_what_always_holds(generation: tuple[GuidedSettings, list[Fraction], list[Any], list[Any]], name: str) -> None:
    settings, weights, discrepancies, moves = generation
    policy = GuidedPolicy(settings, weights, BETWEEN[name])  # type: ignore[arg-type]
    kinds = []
    for step, discrepancy in enumerate(discrepancies):
        kinds.append(policy.kind(step))
        if kinds[-1] is StepKind.FULL:
            policy.observe(step, discrepancy, moves[step])

    full = [step for step, kind in enumerate(kinds) if kind is StepKind.FULL]
    assert full[:2] == [0, 1]
    assert full[-1] == len(weights) - 1
    gaps = [1, *(after - before for before, after in itertools.pairwise(full))]
    assert max(gaps) <= max(1, settings.longest)
    assert all(after <= 2 * before for before, after in itertools.pairwise(gaps))
    for before, after in itertools.pairwise(full):
        assert kinds[before + 1 : after] == list(itertools.islice(itertools.cycle(BETWEEN[name]), after - before - 1))


@given(generations())
def test_a_phase_is_final_once_the_steps_before_it_were_seen(
    generation: tuple[GuidedSettings, list[Fraction], list[Any], list[Any]],
) -> None:
    settings, weights, discrepancies, moves = generation
    policy = GuidedPolicy(settings, weights)  # type: ignore[arg-type]
    shown, told = generate(policy, discrepancies, path(moves))
    assert told == [policy.phase(step) for step in range(len(weights))]
    full = {step for step, *_ in shown}
    assert all(told[step] is Phase.PARALLEL for step in range(len(weights)) if step not in full)


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
    assert guided_steps(14, steady(0.1), tolerance=0.25, longest=2) == [0, 1, 3, 5, 7, 9, 11, 13]
    assert guided_steps(14, steady(0.1), tolerance=0.09) == list(range(14))
    assert guided_steps(24, steady(0.1), tolerance=9.0) == [0, 1, 3, 7, 13, 19, 23]


def test_a_step_that_moves_the_sample_far_is_full() -> None:
    weights = [1.0] * 7 + [9.0] + [1.0] * 6
    policy = GuidedPolicy(GuidedSettings(tolerance=0.35), weights)
    shown, _ = generate(policy, [1.0] * 14, steady(0.1))
    assert [step for step, *_ in shown] == [0, 1, 3, 7, 11, 13]  # step 7 itself; without it the same as 0.35 allows
    heavier = [1.0] * 6 + [9.0] + [1.0] * 7
    policy = GuidedPolicy(GuidedSettings(tolerance=0.35), heavier)
    shown, _ = generate(policy, [1.0] * 14, steady(0.1))
    assert [step for step, *_ in shown] == [0, 1, 3, 6, 10, 13]


def test_the_stage_opens_once_the_discrepancy_has_settled() -> None:
    # It changes by 1/2, 2/3, 1/2 and 1/3 of what it then is.
    discrepancies = [6.0, 4.0, 2.4, 1.6, 1.2, 9.0, 1.0, 9.0, 1.0, 9.0, 1.0]
    policy = GuidedPolicy(GuidedSettings(tolerance=9.0, settled=0.4), [1.0] * 11)
    shown, _ = generate(policy, discrepancies, steady(0.1))
    assert [step for step, *_ in shown] == [0, 1, 2, 3, 4, 6, 10]  # what comes later does not unsettle it
    assert (policy.tau1, policy.tau2) == (4, 10)


@pytest.mark.parametrize("patience", [1, 2, 3])
def test_full_steps_without_room_close_the_stage_for_good(patience: int) -> None:
    moves = [0.0] * 5 + [9.0] * 3 + [0.0] * 12  # a jolt: steps 5 to 7
    policy = GuidedPolicy(GuidedSettings(tolerance=0.1, longest=2, patience=patience), [1.0] * 20)
    shown, _ = generate(policy, [1.0] * 20, path(moves))
    # Full steps 5, 6 and 7 leave no room; where they are too few to close the stage it goes on after step 8.
    assert (policy.tau1, policy.tau2) == (1, 4 + patience)
    assert [step for step, *_ in shown] == [0, 1, 3, *range(5, 20)]
    patient = GuidedPolicy(GuidedSettings(tolerance=0.1, longest=2, patience=4), [1.0] * 20)
    shown, _ = generate(patient, [1.0] * 20, path(moves))
    assert (patient.tau1, patient.tau2) == (1, 19)
    assert [step for step, *_ in shown] == [0, 1, 3, 5, 6, 7, 8, 10, 12, 14, 16, 18, 19]


def test_steps_without_guidance_lie_between_full_ones_like_others() -> None:
    """Guidance off in steps 3 to 5: what step 6 shows has taken five steps to come about."""
    policy = GuidedPolicy(GuidedSettings(tolerance=0.1, longest=8), [1.0] * 20)
    for step in (0, 1):
        policy.observe(step, 1.0, 9.0)
    policy.observe(6, 1.0, 0.15)  # 0.03 a step: three steps may follow
    assert [policy.kind(step) is StepKind.FULL for step in range(7, 12)] == [False, False, False, True, True]


@given(st.sets(st.integers(1, 20)), st.integers(0, 5), st.sampled_from(sorted(BETWEEN)))
def test_a_fixed_schedule_is_what_it_is_given(others: set[int], more: int, name: str) -> None:
    steps = max(others, default=0) + 1 + more
    full = [step for step in range(steps) if step not in others]
    policy = FixedPolicy(full, steps, BETWEEN[name])
    shown, phases = generate(policy, [1.0] * steps, steady(math.nan))
    assert [step for step, *_ in shown] == full
    assert (policy.tau1, policy.tau2) == ((min(others) - 1, max(others)) if others else (None, None))
    assert {step for step, phase in enumerate(phases) if phase is Phase.PARALLEL} >= others
    for start, end in itertools.pairwise([*full, steps]):
        kinds = [policy.kind(step) for step in range(start + 1, end)]
        assert kinds == list(itertools.islice(itertools.cycle(BETWEEN[name]), end - start - 1))


@pytest.mark.parametrize(
    ("full", "message"),
    [
        ([], "step 0 must be a full step"),
        ([1, 2], "step 0 must be a full step"),
        ([0, 9, 10], r"full step 10 lies beyond the last of 10 steps \(9\)"),
    ],
)
def test_fixed_schedules_that_cannot_be(full: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FixedPolicy(full, 10)


@pytest.mark.parametrize(
    ("tau1", "tau2", "interval", "full"),
    [
        (2, 9, 3, [0, 1, 2, 5, 8, 10, 11]),
        (2, 9, 0, [0, 1, 2, 10, 11]),
        (2, 8, 3, [0, 1, 2, 5, 8, 9, 10, 11]),
        (0, 11, 2, [0, 2, 4, 6, 8, 10]),
        (0, 11, 20, [0]),
        (4, 4, 2, list(range(12))),
    ],
)
def test_regular_schedules(tau1: int, tau2: int, interval: int, full: list[int]) -> None:
    assert regular_schedule(tau1, tau2, interval, 12) == full


@pytest.mark.parametrize(
    ("tau1", "tau2", "interval", "message"),
    [
        (-1, 4, 2, "tau1 -1 and tau2 4 must satisfy 0 <= tau1 <= tau2"),
        (5, 4, 2, "tau1 5 and tau2 4 must satisfy"),
        (5, 12, 2, r"tau2 12 lies beyond the last of 12 steps \(11\)"),
        (5, 9, 1, "an interval of 1 leaves no step between full ones; use 2 or more, or 0 for none"),
        (5, 9, -2, "an interval of -2 leaves no step"),
    ],
)
def test_regular_schedules_that_cannot_be(tau1: int, tau2: int, interval: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regular_schedule(tau1, tau2, interval, 12)
