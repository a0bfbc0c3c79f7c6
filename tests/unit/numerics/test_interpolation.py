from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.numerics.interpolation import interpolate


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=6, unique=True).map(sorted),
    st.integers(-10, 60),
    st.data(),
)
def test_straight_lines_stay_between_their_ends(places: list[int], position: int, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.integers(0, 9), min_size=len(places), max_size=len(places)))
    points = [(float(place), float(value)) for place, value in zip(places, values, strict=True)]
    value = interpolate(points, position)
    left = [point for point in points if point[0] <= position][-1:] or points[:1]
    right = [point for point in points if point[0] >= position][:1] or points[-1:]
    ends = sorted((left[0][1], right[0][1]))
    assert ends[0] <= value <= ends[1]
    if position in places:
        assert value == dict(points)[position]


@pytest.mark.parametrize(
    ("position", "value"), [(-1, 4), (0, 4), (1, 3.5), (2, 3), (3, 6), (3.5, 7.5), (4, 9), (99, 9)]
)
def test_by_hand(position: float, value: float) -> None:
    assert interpolate([(0.0, 4.0), (2.0, 3.0), (4.0, 9.0)], position) == value
