from __future__ import annotations

import pytest
import torch

from hybridiff.guidance import discrepancy


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
