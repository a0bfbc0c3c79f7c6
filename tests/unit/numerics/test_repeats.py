"""Evaluations at one time: how far apart, how fast, and what hindsight cannot see."""

from __future__ import annotations

import pytest
import torch

from hybridiff.numerics.extrapolation import Extrapolation
from hybridiff.numerics.repeats import Repeats

PLACES = (0.0, 1.0, 1.25, 2.0, 2.25)


def at(value: float) -> torch.Tensor:
    return torch.full((2, 1, 1, 1), value)


def hindsight(*values: float, places: tuple[float, ...] | None = None) -> Extrapolation:
    extrapolation = Extrapolation(order=3, places=places)
    for step, value in enumerate(values):
        extrapolation.observe(step, (at(value),))
    return extrapolation


def test_without_repeats_steps_lie_at_their_index_and_speeds_are_what_is_seen() -> None:
    repeats, seen = Repeats(None), hindsight(0.0, 1.0, 4.0, 27.0)
    assert repeats.distance(2, 5) == 3
    for speed in (3.0, 1.0, 2.0):
        assert repeats.observe(at(1.0), at(0.0), 1, torch.tensor([speed])).tolist() == [speed]
    expected = seen.at(2)[0] - seen.at(2, order=2)[0]
    assert torch.equal(repeats.pair(seen, 2), expected)


def test_what_two_evaluations_at_one_time_differ_by_stands_for_the_pair() -> None:
    repeats, seen = Repeats(PLACES), hindsight(0.0, 1.0, 1.5, places=PLACES)
    assert torch.equal(repeats.pair(seen, 2), at(0.0)), "not seen yet"
    repeats.observe(at(1.5), at(1.0), repeats.distance(1, 2), torch.tensor([2.0]))
    assert torch.equal(repeats.pair(seen, 4), at(0.5))
    assert torch.equal(repeats.pair(seen, 3), seen.at(3)[0] - seen.at(3, order=2)[0])


def test_the_faster_change_counts_and_is_forgotten() -> None:
    repeats = Repeats(PLACES)
    assert repeats.observe(at(1.0), at(0.0), 1.0, torch.tensor([1.0, 5.0])).tolist() == [1.0, 5.0]
    speeds = repeats.observe(at(2.0), at(1.0), 0.25, torch.tensor([4.0, 4.0])).tolist()
    assert speeds == pytest.approx([4.0, 4.0])
    speeds = repeats.observe(at(3.0), at(2.0), 1.0, torch.tensor([1.0, 5.0])).tolist()
    assert speeds == pytest.approx([2.8, 5.0])
