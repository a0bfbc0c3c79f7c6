"""Forecasts are the polynomials that they say they are, and guidance comes back from its difference."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridiff.numerics.extrapolation import ORDERS, Forecast
from hybridiff.numerics.guidance import GuidanceCarry


def polynomial(coefficients: list[float], position: float) -> torch.Tensor:
    """Two polynomials, one the other's double, as a tensor."""
    value = sum(factor * position**power for power, factor in enumerate(coefficients))
    return torch.tensor([value, 2 * value], dtype=torch.float64).float()


@settings(deadline=None)
@given(
    coefficients=st.lists(st.floats(-2, 2), min_size=1, max_size=3),
    gaps=st.lists(st.integers(1, 5), min_size=3, max_size=6),
    ahead=st.integers(1, 4),
)
def test_a_polynomial_of_its_order_is_forecast_exactly(coefficients: list[float], gaps: list[int], ahead: int) -> None:
    forecast = Forecast(order=len(coefficients) - 1)
    position = 0
    for gap in gaps:
        position += gap
        forecast.observe(position, (polynomial(coefficients, position),))
    (found,) = forecast.at(position + ahead)
    expected = polynomial(coefficients, position + ahead)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0.05)  # extrapolated float32


@pytest.mark.parametrize("order", [0, 1, 2])
def test_few_observations_lower_the_order(order: int) -> None:
    forecast = Forecast(order)
    forecast.observe(4, (torch.tensor([3.0]),))
    assert forecast.at(9)[0].item() == 3.0
    forecast.observe(5, (torch.tensor([5.0]),))
    assert forecast.at(6)[0].item() == (5.0 if order == 0 else 7.0)


def test_what_is_held_is_the_observation_itself() -> None:
    tensors = (torch.randn(2, 3, dtype=torch.bfloat16), torch.randn(4))
    forecast = Forecast(ORDERS["hold"])
    forecast.observe(1, tensors)
    assert forecast.at(7) is tensors


def test_a_forecast_keeps_the_dtype_and_is_computed_in_float32() -> None:
    forecast = Forecast(1)
    first, second = torch.tensor([1.0, 256.0]).bfloat16(), torch.tensor([1.0078125, 257.0]).bfloat16()
    forecast.observe(0, (first,))
    forecast.observe(1, (second,))
    (found,) = forecast.at(3)
    expected = (second.float() * 3 - first.float() * 2).bfloat16()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)


def test_a_slope_only_between_observations_that_are_far_enough_apart() -> None:
    forecast = Forecast(1, spread=2.0)
    for step in range(2):
        forecast.observe(step, (torch.tensor([float(step) ** 2]),))
    assert forecast.at(6)[0].item() == 1.0, "held"
    for step in range(2, 6):
        forecast.observe(step, (torch.tensor([float(step) ** 2]),))
    assert forecast.at(7)[0].item() == 41.0, "slope 8 from (3, 9) to (5, 25)"
    forecast.observe(9, (torch.tensor([41.0]),))
    assert forecast.at(10)[0].item() == 45.0, "slope 4 from (5, 25) to (9, 41)"


def test_no_more_is_kept_than_can_be_needed() -> None:
    forecast = Forecast(2, spread=2.0)
    for step in range(30):
        forecast.observe(step, (torch.tensor([float(step) ** 2]),))
    assert len(forecast) == 5
    assert forecast.at(31)[0].item() == pytest.approx(31**2)


@pytest.mark.parametrize(("order", "at_eight"), [("hold", 4.0), ("linear", 5.0)])
def test_carried_guidance(order: str, at_eight: float) -> None:
    carry = GuidanceCarry(order)
    for step, difference in ((2, 2.0), (6, 4.0)):
        unconditional = torch.randn(1, 2, 2, 2)
        carry.observe(step, unconditional, unconditional + difference)
    conditional = torch.randn(1, 2, 2, 2)
    torch.testing.assert_close(carry.unconditional(8, conditional), conditional - at_eight)


def test_the_difference_is_kept_in_float32() -> None:
    """In half precision a small difference of large predictions would be lost on the way."""
    carry = GuidanceCarry("linear")
    unconditional = torch.full((1, 1, 1, 1), 1000.0, dtype=torch.bfloat16)
    for step, difference in ((0, 4.0), (3, 12.0)):
        carry.observe(step, unconditional, unconditional + difference)
    (found,) = -carry.unconditional(4, torch.zeros(1, 1, 1, 1)).flatten()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(12.0 + 8.0 / 3.0))
