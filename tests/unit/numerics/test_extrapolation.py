"""Extrapolations are the polynomials that they say they are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridiff.numerics.extrapolation import BENDS, NOISE, Extrapolation, lagrange_weights, smoothing_weights
from support.splines import spline_weights


def polynomial(coefficients: list[float], position: float) -> torch.Tensor:
    """Two polynomials, one the other's double, as a tensor."""
    value = sum(factor * position**power for power, factor in enumerate(coefficients))
    return torch.tensor([value, 2 * value], dtype=torch.float64).float()


@settings(deadline=None)
@given(
    coefficients=st.lists(st.floats(-2, 2), min_size=1, max_size=4),
    gaps=st.lists(st.integers(1, 5), min_size=4, max_size=6),
    ahead=st.integers(1, 4),
)
def test_a_polynomial_of_its_order_is_extrapolated_exactly(
    coefficients: list[float], gaps: list[int], ahead: int
) -> None:
    extrapolation = Extrapolation(order=len(coefficients) - 1)
    position = 0
    for gap in gaps:
        position += gap
        extrapolation.observe(position, (polynomial(coefficients, position),))
    (found,) = extrapolation.at(position + ahead)
    expected = polynomial(coefficients, position + ahead)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=0.1)  # extrapolated float32


@pytest.mark.parametrize("order", [1, 2, 3])
def test_between_observations_it_interpolates(order: int) -> None:
    coefficients = [1.0, -0.5, 0.25, 0.125][: order + 1]
    extrapolation = Extrapolation(order)
    places = [0, 1, 4, 6][: order + 1]
    for place in places:
        extrapolation.observe(place, (polynomial(coefficients, place),))
    for position in range(places[-1] + 1):
        torch.testing.assert_close(extrapolation.at(position)[0], polynomial(coefficients, position))


@settings(deadline=None)
@given(
    values=st.lists(st.floats(-9, 9, width=32), min_size=1, max_size=7),
    gaps=st.lists(st.integers(1, 5), min_size=7, max_size=7),
    order=st.integers(0, 3),
    where=st.integers(-3, 40),
)
def test_a_lower_degree_is_that_of_an_extrapolation_of_it(
    values: list[float], gaps: list[int], order: int, where: int
) -> None:
    """Bit for bit, and the full one is as it was."""
    whole, lower = Extrapolation(order=3), Extrapolation(order)
    position = 0
    for value, gap in zip(values, gaps, strict=False):
        position += gap
        for extrapolation in (whole, lower):
            extrapolation.observe(position, (torch.tensor([value]), torch.tensor([value, -value])))
    assert all(map(torch.equal, whole.at(where, order), lower.at(where)))
    assert all(map(torch.equal, whole.at(where, order=3), whole.at(where)))


@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_few_observations_lower_the_order(order: int) -> None:
    extrapolation = Extrapolation(order)
    extrapolation.observe(4, (torch.tensor([3.0]),))
    assert extrapolation.at(9)[0].item() == 3.0
    extrapolation.observe(5, (torch.tensor([5.0]),))
    assert extrapolation.at(6)[0].item() == (5.0 if order == 0 else 7.0)


def test_without_an_observation_there_is_nothing_to_go_by() -> None:
    with pytest.raises(AssertionError, match="needs an observation"):
        Extrapolation(1).at(0)


def test_what_is_held_is_the_observation_itself() -> None:
    tensors = (torch.randn(2, 3, dtype=torch.bfloat16), torch.randn(4))
    extrapolation = Extrapolation(order=0)
    extrapolation.observe(0, (torch.zeros(1), torch.zeros(1)))
    extrapolation.observe(1, tensors)
    assert extrapolation.at(7) is tensors


def test_it_keeps_the_dtype_and_is_computed_in_float32() -> None:
    extrapolation = Extrapolation(1)
    first, second = torch.tensor([1.0, 256.0]).bfloat16(), torch.tensor([1.0078125, 257.0]).bfloat16()
    extrapolation.observe(0, (first,))
    extrapolation.observe(1, (second,))
    (found,) = extrapolation.at(3)
    expected = (second.float() * 3 - first.float() * 2).bfloat16()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_only_the_latest_observations_count(order: int) -> None:
    """Also in memory: no more is kept than can be needed."""
    extrapolation, fresh = Extrapolation(order), Extrapolation(order)
    for step in range(30):
        observation = (torch.tensor([float(step) ** 4]),)
        extrapolation.observe(step, observation)
        if step >= 29 - order:
            fresh.observe(step, observation)
    assert torch.equal(extrapolation.at(31)[0], fresh.at(31)[0])
    assert len(extrapolation._observations) == len(extrapolation._positions) == order + 1


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("order", [0, 1, 3])
def test_going_on_with_the_last_rows_is_having_seen_those_alone(order: int, rows: int) -> None:
    """Where guidance ends, the conditional branch goes on alone: its rows are the last ones."""
    whole, part = Extrapolation(order), Extrapolation(order)
    random = torch.Generator().manual_seed(0)
    for step in (0, 1, 4, 6):
        tensors = (torch.randn(2 * rows, 3, generator=random), torch.randn(2 * rows, generator=random))
        whole.observe(step, tensors)
        part.observe(step, tuple(tensor[rows:] for tensor in tensors))
    whole.keep_last_rows(rows)
    assert all(map(torch.equal, whole.at(7), part.at(7)))
    later = (torch.randn(rows, 3, generator=random), torch.randn(rows, generator=random))
    for extrapolation in (whole, part):
        extrapolation.observe(8, later)
    assert all(map(torch.equal, whole.at(5), part.at(5)))
    assert [tensor.shape[0] for tensor in whole.at(9)] == [rows, rows]


def test_keeping_rows_of_nothing_is_nothing() -> None:
    extrapolation = Extrapolation(1)
    extrapolation.keep_last_rows(1)
    extrapolation.observe(0, (torch.ones(1),))
    assert extrapolation.at(3)[0].item() == 1.0


def test_places() -> None:
    """What is less than one apart is at one place: the later observation stands for it."""
    extrapolation, plain = Extrapolation(order=2, places=(0.0, 1.0, 1.25, 2.0, 2.25)), Extrapolation(order=2)
    for position, value in ((0, 0.0), (1, 8.0), (2, 1.0), (3, 4.0)):
        extrapolation.observe(position, (torch.tensor([value]),))
    for position, value in ((0, 0.0), (1, 1.0), (2, 4.0)):
        plain.observe(position, (torch.tensor([value]),))
    for position, place in ((1, 1), (2, 1), (3, 2), (4, 2)):
        assert torch.equal(extrapolation.at(position)[0], plain.at(place)[0])


@settings(deadline=None)
@given(
    count=st.integers(1, 6),
    gaps=st.lists(st.integers(1, 9), min_size=6, max_size=6),
    share=st.floats(0, 1),
)
def test_smoothing_weights_are_those_of_the_smoothing_spline(count: int, gaps: list[int], share: float) -> None:
    places = list(itertools.accumulate(gaps[:count]))
    where = places[0] + share * (places[-1] - places[0])
    found = smoothing_weights(tuple(places), where)
    expected = spline_weights([place - places[0] for place in places], where - places[0], NOISE, BENDS)
    assert found == pytest.approx(expected.tolist(), abs=1e-6)


def test_one_gap_between_full_steps_in_a_row_does_not_amplify_noise() -> None:
    """The quintic through steps 26 to 30 and 32 is at 31 more than three times as noisy as what it goes through."""
    places = (26.0, 27.0, 28.0, 29.0, 30.0, 32.0)
    quintic, smooth = (math.hypot(*weights(places, 31.0)) for weights in (lagrange_weights, smoothing_weights))
    assert quintic > 3
    assert smooth < 1.1
