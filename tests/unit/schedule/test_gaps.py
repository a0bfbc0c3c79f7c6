"""Plans of gaps: no other way to the end has as few full steps and as little error."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridiff.schedule.gaps import GapPlan


def ways(steps: int, longest: int, step: int = 0) -> Iterator[list[int]]:
    """All ways to the last step by full steps; the last two are full."""
    if step == steps - 1:
        yield []
        return
    for gap in range(1, max(1, min(longest, steps - 2 - step)) + 1):
        for rest in ways(steps, longest, step + gap):
            yield [gap, *rest]


def expected(sizes: list[float], step: int, gap: int) -> float:
    """What a gap leaves of steps of some sizes: the further ahead a step, the more."""
    return sum(ahead * sizes[step + ahead] for ahead in range(1, gap))


def error(sizes: list[float], way: list[int]) -> float:
    return sum(expected(sizes, at, gap) ** 2 for at, gap in zip(itertools.accumulate([0, *way]), way, strict=False))


def followed(plan: GapPlan, sizes: list[float], left: float) -> list[int]:
    """The way of a plan where gaps leave what is expected."""
    step, way = 0, []
    while step < len(sizes) - 1:
        gap = plan.room(step, 1.0, left)
        left = max(0.0, left - expected(sizes, step, gap) ** 2)
        way.append(gap)
        step += gap
    return way


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.1, 3), min_size=4, max_size=11), st.integers(2, 5), st.floats(0.01, 100))
def test_no_way_is_better_in_both(sizes: list[float], longest: int, left: float) -> None:
    plan = GapPlan(lambda step, gap: expected(sizes, step, gap), len(sizes), longest)
    way = followed(plan, sizes, left)
    found = error(sizes, way)
    assert sum(way) == len(sizes) - 1
    assert found <= left * (1 + 1e-9)
    if plan.room(0, 1.0, found * (1 + 1e-9)) == way[0]:  # what was left over was not enough for a further gap
        others = [other for other in ways(len(sizes), longest) if error(sizes, other) < found * (1 - 1e-9)]
        assert all(len(other) >= len(way) for other in others)


@pytest.mark.parametrize("steps", [2, 3, 4, 5])
def test_short_runs(steps: int) -> None:
    plan = GapPlan(lambda step, gap: float(gap > 1), steps, 6)
    assert followed(plan, [1.0] * steps, 0.0) == [1] * (steps - 1)
    assert followed(plan, [1.0] * steps, 1e9)[-1] == 1


def test_gaps_are_where_they_cost_little() -> None:
    """Half of the steps are ten times as large as the others."""
    sizes = [1.0] * 20 + [0.1] * 20
    way = followed(GapPlan(lambda step, gap: expected(sizes, step, gap), 40, 6), sizes, 0.2)
    steps = list(itertools.accumulate([0, *way]))
    assert next(at for at, gap in zip(steps, way, strict=False) if gap > 1) >= 19


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_room(scale: float) -> None:
    assert GapPlan(lambda step, gap: float(gap > 1), 20, 6).room(3, scale, 1.0) == 1


def test_what_does_not_change_has_all_room() -> None:
    assert GapPlan(lambda step, gap: float(gap > 1), 20, 6).room(6, 0.0, 0.0) == 6
