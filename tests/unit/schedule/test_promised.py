"""Promised switching: never more is spent than expected to be there, and what gaps leave is learned from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridiff import StepKind
from hybridiff.numerics.estimate import REACTION
from hybridiff.numerics.sensitivity import Sensitivity
from hybridiff.schedule.fixed import FixedPolicy
from hybridiff.schedule.promised import MOST_DECIBELS, ROUNDS, PromisedPolicy, error_bound, estimated_fidelity
from support.promised import PromisedByHand, Shown, gaps, run_policy


def sensitivity(final: Sequence[float]) -> Sensitivity:
    """One of which only the last row is known."""
    return Sensitivity([1.0] * len(final), [[math.nan] * len(final)] * (len(final) - 1) + [list(final)])


def promised(bound: float, final: Sequence[float], longest: int = 9) -> tuple[PromisedPolicy, PromisedByHand]:
    return PromisedPolicy(bound, sensitivity(final), longest), PromisedByHand(bound, final, longest)


def full_steps(shown: Sequence[Shown]) -> list[int]:
    return [step for step, *_ in shown]


@st.composite
def runs(draw: st.DrawFn) -> dict[str, Any]:
    """Runs of some images: sensitivities of any sign, speeds that change, gaps that leave anything."""
    steps, images = draw(st.integers(4, 40)), draw(st.integers(1, 3))
    sizes = st.just(0.0) | st.floats(1e-3, 2) | st.floats(-2, -1e-3)
    final = draw(st.lists(sizes, min_size=steps, max_size=steps))
    rates = st.lists(st.just(0.0) | st.floats(1e-3, 3), min_size=images, max_size=images)
    speeds = draw(st.lists(rates, min_size=steps, max_size=steps))
    shares = draw(st.lists(st.floats(0.05, 9), min_size=steps, max_size=steps))
    return {
        "bound": draw(st.floats(1e-3, 30)),
        "final": final,
        "longest": draw(st.integers(2, 10)),
        "speeds": speeds,
        "shares": shares,
    }


def shown_in(run: dict[str, Any]) -> tuple[list[Shown], PromisedPolicy, PromisedByHand]:
    policy, by_hand = promised(run["bound"], run["final"], run["longest"])

    def left(before: int, after: int, speeds: Sequence[float]) -> list[float]:
        return [run["shares"][after] * by_hand.expected(speed, before, after - before) for speed in speeds]

    shown = run_policy(policy, len(run["final"]), lambda step: run["speeds"][step], left)
    return shown, policy, by_hand


@settings(deadline=None)
@given(runs())
def test_gaps_are_those_of_the_cheapest_plan_that_fits(run: dict[str, Any]) -> None:
    """But where two sums round in other ways."""
    shown, _, by_hand = shown_in(run)
    for place, distance in enumerate(gaps(shown)):
        so_far = shown[: place + 1]
        step = so_far[-1][0]
        if step + distance != by_hand.next_full(so_far):
            assert step + distance in {by_hand.next_full(so_far, tolerance) for tolerance in (-1e-9, 1e-9)}


@settings(deadline=None)
@given(runs())
def test_bounds_of_gaps(run: dict[str, Any]) -> None:
    shown, policy, _ = shown_in(run)
    distances, steps = gaps(shown), len(run["final"])
    assert full_steps(shown)[:3] == [0, 1, 2]
    assert full_steps(shown)[-2:] == [steps - 2, steps - 1], "the last step is like no other"
    assert all(distance <= run["longest"] for distance in distances)
    assert all(after <= 2 * before for before, after in itertools.pairwise(distances))
    assert policy.estimated == max(shown[-1][2])
    if any(distance > 1 for distance in distances):
        first = next(place for place, distance in enumerate(distances) if distance > 1)
        assert (policy.tau1, policy.tau2) == (full_steps(shown)[first], steps - 1)
    else:
        assert (policy.tau1, policy.tau2) == (None, None)


@settings(deadline=None)
@given(runs())
def test_the_bound_holds_where_gaps_leave_what_is_expected(run: dict[str, Any]) -> None:
    """All that is there may be spent, no more."""
    _, policy, _ = shown_in(run | {"shares": [1.0] * len(run["final"])})
    assert policy.estimated <= run["bound"] * (1 + 1e-6)


@settings(deadline=None)
@given(runs(), st.floats(0, 1))
def test_less_than_expected_is_within_the_bound_too(run: dict[str, Any], share: float) -> None:
    """The expectation falls, and is not undercut."""
    _, policy, _ = shown_in(run | {"shares": [max(0.25, share)] * len(run["final"])})
    assert policy.estimated <= run["bound"] * (1 + 1e-6)


@given(
    st.integers(8, 60),
    st.floats(0.01, 3),
    st.floats(1e-3, 10),
    st.floats(4.0, 30.0),
    st.integers(2, 9),
    st.floats(0, 4),
)
@settings(deadline=None)
def test_a_tighter_bound_has_no_fewer_full_steps(
    steps: int, speed: float, bound: float, tighter: float, longest: int, share: float
) -> None:
    """Where predictions change evenly and every step counts alike.

    Much tighter: after a gap that spends nearly all of a budget the others are short, so that half of the budget may
    take a step less.
    """

    def count(bound: float) -> int:
        run = {"bound": bound, "final": [1.0] * steps, "longest": longest}
        shown, *_ = shown_in(run | {"speeds": [[speed]] * steps, "shares": [share] * steps})
        return len(shown)

    assert count(bound / tighter) >= count(bound)


@pytest.mark.parametrize("images", [2, 4])
def test_the_worst_image_decides(images: int) -> None:
    """An image that is the worst throughout has the batch run as it would run alone."""
    steps, final = 30, [0.3] * 30

    def run(speeds: list[float]) -> list[int]:
        policy, by_hand = promised(0.2, final)
        shown = run_policy(
            policy,
            steps,
            lambda step: [speed * (1 + step % 3) for speed in speeds],
            lambda before, after, now: [1.3 * by_hand.expected(speed, before, after - before) for speed in now],
        )
        assert policy.estimated == max(shown[-1][2])
        return full_steps(shown)

    worst = run([0.3])
    assert 5 < len(worst) < steps
    for place in range(images):
        assert run([0.3 if row == place else 0.02 * row for row in range(images)]) == worst
    assert len(run([0.02])) < len(worst)


def after_a_gap(share: float) -> int:
    """How far the next full step lies after a gap, from step 2 to 4, that left a multiple of what was expected."""
    policy, by_hand = promised(0.4, [1.0] * 40)
    policy.observe(0, 0.5, 0.1)
    policy.observe(1, 0.5, 0.1, [0.12, 0.0, 0.0])
    policy.observe(2, 0.5, 0.1, [0.12, 0.0, 0.0])
    policy.observe(4, 0.5, 0.1, [0.12, share * by_hand.expected(0.12, 2, 2), 0.0])
    return next(step for step in range(5, 40) if policy.is_full(step)) - 4


def test_a_gap_that_left_more_than_expected_shortens_the_next_ones() -> None:
    rooms = [after_a_gap(share) for share in (0.3, 1.0, 1.8, 4.0)]
    assert rooms == sorted(rooms, reverse=True)
    assert rooms[0] > rooms[1] > rooms[2]


@pytest.mark.parametrize(("beyond", "limit"), [(16.0, 4.0), (0.01, 0.25)])
def test_what_one_gap_left_counts_no_further_than_the_clip(beyond: float, limit: float) -> None:
    policies = []
    for share in (beyond, limit):
        policy, by_hand = promised(5.0, [1.0] * 40)
        policy.observe(0, 0.5, 0.1)
        policy.observe(1, 0.5, 0.1, [0.1, 0.0, 0.0])
        policy.observe(2, 0.5, 0.1, [0.1, 0.0, 0.0])
        policy.observe(4, 0.5, 0.1, [0.1, share * by_hand.expected(0.1, 2, 2), 0.0])
        policies.append(policy)
    assert policies[0]._factor == pytest.approx(policies[1]._factor)
    assert policies[0]._factor == [pytest.approx(math.sqrt(limit))]


def test_what_was_learned_is_forgotten() -> None:
    policy, by_hand = promised(5.0, [1.0] * 40)
    policy.observe(0, 0.5, 0.1)
    policy.observe(1, 0.5, 0.1, [0.1, 0.0, 0.0])
    policy.observe(2, 0.5, 0.1, [0.1, 0.0, 0.0])
    spent = 4 * by_hand.expected(0.1, 2, 2)
    policy.observe(4, 0.5, 0.1, [0.1, spent, 0.0])
    factors = [policy._factor[0]]
    for step in range(5, 12):
        policy.observe(step, 0.5, 0.1, [0.1, spent, 0.0])
        factors.append(policy._factor[0])
    assert factors == pytest.approx([2 ** (0.5**power) for power in range(8)])


@pytest.mark.parametrize("spent", [1.0, 1.1, 50.0, math.inf])
def test_everything_is_full_once_the_bound_is_spent(spent: float) -> None:
    policy, _ = promised(1.0, [1.0] * 30)
    shown = run_policy(policy, 30, lambda step: [0.1], lambda before, after, speeds: [spent])
    first = next(place for place, distance in enumerate(gaps(shown)) if distance > 1)
    assert set(gaps(shown)[first + 1 :]) == {1}
    assert policy.estimated == spent


@pytest.mark.parametrize("speed", [math.nan, math.inf])
def test_what_is_not_finite_leaves_no_room(speed: float) -> None:
    policy, _ = promised(1.0, [0.0, 1.0] * 10)
    shown = run_policy(policy, 20, lambda step: [0.0, speed], lambda *_: pytest.fail("there was a gap"))
    assert full_steps(shown) == list(range(20))
    policy, _ = promised(1.0, [1.0] * 20)
    shown = run_policy(policy, 20, lambda step: [0.0, speed if step < 10 else 0.0], lambda *_: [0.0, 0.0])
    assert full_steps(shown)[:11] == list(range(11))
    assert max(gaps(shown)) > 1


def test_where_nothing_was_measured_nothing_is_cached() -> None:
    """As where guidance comes and goes."""
    policy, _ = promised(1e9, [1.0] * 9)
    for step in range(9):
        assert policy.kind(step) is StepKind.FULL
        policy.observe(step, 0.5, 0.1)
    assert policy.estimated == 0.0


@pytest.mark.parametrize("steps", [3, 4])
def test_the_shortest_runs(steps: int) -> None:
    policy, _ = promised(1e9, [1.0] * steps)
    shown = run_policy(policy, steps, lambda step: [0.0], lambda *_: [0.0])
    assert full_steps(shown) == list(range(steps))
    assert (policy.tau1, policy.tau2) == (None, None)


def test_a_full_step_before_its_time_does_not_teach_that_gaps_cost_little() -> None:
    """Some steps are full whatever the policy says, as those of skip-layer guidance are."""
    policy, by_hand = promised(9.0, [1.0] * 40)
    policy.observe(0, 0.5, 0.1)
    policy.observe(1, 0.5, 0.1, [0.1, 0.0, 0.0])
    policy.observe(2, 0.5, 0.1, [0.1, 0.0, 0.0])
    policy.observe(4, 0.5, 0.1, [0.1, 0.0, 0.0])
    assert not policy.is_full(7)
    policy.observe(6, 0.5, 0.1, [0.1, by_hand.expected(0.1, 4, 2), 0.0])
    assert policy._factor == [pytest.approx(1.0)]


def test_an_end_that_guidance_has_set_stays() -> None:
    policy, _ = promised(1e9, [1.0] * 12)
    for step in range(3):
        policy.observe(step, 0.5, 0.1, [0.1, 0.0, 0.0])
    policy.tau2 = 6
    for step in range(9, 12):
        policy.observe(step, 0.5, 0.1, [0.1, 0.0, 0.0])
    assert policy.tau2 == 6


def test_a_gap_in_which_guidance_ends_is_left_whole() -> None:
    policy, by_hand = promised(9.0, [1.0] * 12)
    for step in range(3):
        policy.observe(step, 0.5, 0.1, [0.1, 0.2, 0.0, 0.3, 0.0, 0.0])
    assert policy.estimated == 0.3
    assert not policy.is_full(3)
    policy.end_guidance(5)
    left = by_hand.expected(policy._speeds[1], 2, 3) / REACTION
    assert policy.estimated == pytest.approx(math.hypot(0.3, left))
    policy.end_guidance(3)
    assert policy.estimated == pytest.approx(math.hypot(0.3, left)), "there was no gap"


def test_it_is_the_same_from_run_to_run() -> None:
    run = {"bound": 0.3, "final": [0.2] * 30, "longest": 5, "shares": [1.5, 0.5] * 15}
    run["speeds"] = [[0.1 + 0.01 * (step % 4)] for step in range(30)]
    assert shown_in(run)[0] == shown_in(run)[0]


@pytest.mark.parametrize("gain", [0.1, 0.37, 2.0])
@pytest.mark.parametrize("fidelity", [10.0, 35.0, 50.0, 100.0])
def test_bounds_are_decibels_of_pixels(fidelity: float, gain: float) -> None:
    error = error_bound(fidelity, gain) * gain  # of images from 0 to 1
    assert -10 * math.log10(error**2) == pytest.approx(fidelity)


def spending(error: float) -> PromisedPolicy:
    policy, _ = promised(1.0, [1.0] * 9)
    policy.observe(1, 0.5, 0.1, [0.1, 0.2, 0.0, error, 0.0, 0.0])
    policy.tau1 = 0
    return policy


@pytest.mark.parametrize("gain", [0.1, 0.37, 2.0])
def test_what_is_estimated_is_told_in_decibels_of_the_worst_image(gain: float) -> None:
    assert estimated_fidelity(spending(0.01), gain) == pytest.approx(-20 * math.log10(0.01 * gain))
    assert estimated_fidelity(spending(error_bound(47.0, gain)), gain) == pytest.approx(47.0)
    assert estimated_fidelity(spending(0.0), gain) == MOST_DECIBELS
    assert estimated_fidelity(spending(1e-9), gain) == MOST_DECIBELS
    assert estimated_fidelity(FixedPolicy.all_full(9), gain) == MOST_DECIBELS


@pytest.mark.parametrize("rounded", [0.0, 0.3, 0.7, 0.9, 2.0])
def test_what_rounding_does_counts_and_leaves_gaps_some_room(rounded: float) -> None:
    """Part of the bound where that allows it, else half as much again, and it is said that the promise is broken."""
    policy, _ = promised(1.0, [0.02] * 40)
    whole = math.sqrt(max(1 - rounded**2, rounded**2 / 2))
    same, _ = promised(whole, [0.02] * 40)
    for step in range(40):
        for one, told in ((policy, rounded), (same, 0.0)):
            assert one.is_full(step) == policy.is_full(step)
            if one.is_full(step):
                one.observe(step, 0.5, 0.1, [2.0, 0.01 * step, told] if step else [])
    assert policy.tau1 is not None
    assert policy.estimated == pytest.approx(math.hypot(rounded, 0.39))
    assert policy.notes() == ([ROUNDS] if rounded > math.sqrt(2 / 3) else [])


def test_where_no_step_is_cached_all_is_rounded_in_the_same_way() -> None:
    policy, _ = promised(1e-9, [1.0] * 9)
    for step in range(9):
        assert policy.is_full(step)
        policy.observe(step, 0.5, 0.1, [0.1, 0.0, 1e-12] if step else [])
    assert (policy.estimated, policy.notes()) == (0.0, [])
