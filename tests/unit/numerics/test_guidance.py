from __future__ import annotations

import pytest
import torch

from hybridiff.numerics.guidance import discrepancy, drift


def test_discrepancy_by_hand() -> None:
    unconditional = torch.tensor([1.0, -1.0, 2.0, 0.0])
    conditional = torch.tensor([2.0, -1.0, 0.0, 0.0])  # differs by 1 and by 2; the mean of |unconditional| is 1
    assert discrepancy(unconditional, conditional).item() == pytest.approx(0.75)


def test_discrepancy_of_equal_predictions_is_zero_and_scale_does_not_matter() -> None:
    random = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 4, 8, 8, generator=random), torch.randn(2, 4, 8, 8, generator=random)
    assert discrepancy(one, one).item() == 0
    assert discrepancy(3 * one, 3 * other).item() == pytest.approx(discrepancy(one, other).item())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_discrepancy_is_a_float32_scalar_that_neither_overflows_nor_divides_by_zero(dtype: torch.dtype) -> None:
    large = torch.full((4, 64, 64), 6e4, dtype=dtype)
    result = discrepancy(large, -large)
    assert result.shape == ()
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(2.0)
    assert discrepancy(torch.zeros_like(large), torch.zeros_like(large)).item() == 0


def test_drift_by_hand() -> None:
    now = torch.tensor([[3.0, 4.0], [0.0, 2.0]]).view(2, 1, 1, 2)
    before = torch.tensor([[3.0, 1.0], [1.0, 2.0]]).view(2, 1, 1, 2)
    # The rows moved by 3 of 5 and by 1 of 2: the mean of the squares is (0.36 + 0.25) / 2.
    assert drift(now, before).item() == pytest.approx(0.305**0.5)
    assert drift(now, now).item() == 0
    assert drift(7 * now, 7 * before).item() == pytest.approx(drift(now, before).item())


def test_drift_is_not_a_number_where_a_prediction_is_none() -> None:
    here = torch.ones(2, 4, 8, 8)
    assert drift(here, torch.full_like(here, torch.nan)).isnan()
    assert drift(here.where(torch.arange(8) > 0, torch.inf), here).isnan()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_drift_is_a_float32_scalar_that_neither_overflows_nor_divides_by_zero(dtype: torch.dtype) -> None:
    large = torch.full((2, 4, 64, 64), 6e4, dtype=dtype)
    result = drift(large, -large)
    assert (result.shape, result.dtype) == ((), torch.float32)
    assert result.item() == pytest.approx(2.0)
    assert drift(torch.zeros_like(large), torch.zeros_like(large)).item() == 0
