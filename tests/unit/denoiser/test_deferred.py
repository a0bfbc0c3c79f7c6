"""Deferred tensors are what they stand for, and compute no more rows than somebody asks for."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff.denoiser.deferred import DeferredTensor, computed

VALUES = torch.arange(24.0).reshape(4, 3, 2)


class Computed:
    """A deferred tensor of `VALUES`, and which of its rows were computed."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int]] = []
        self.tensor = DeferredTensor(VALUES.to("meta"), VALUES.device, self._compute)

    def _compute(self, start: int, stop: int) -> torch.Tensor:
        self.rows.append((start, stop))
        return VALUES[start:stop].clone()


@pytest.fixture
def deferred() -> Computed:
    return Computed()


def is_real(value: Any) -> bool:
    return type(value) is torch.Tensor


def test_its_form_is_known(deferred: Computed) -> None:
    tensor = deferred.tensor
    assert (tensor.shape, tensor.dtype, tensor.device, tensor.ndim) == (VALUES.shape, VALUES.dtype, VALUES.device, 3)
    assert (len(tensor), tensor.numel(), tensor.stride()) == (4, 24, VALUES.stride())
    assert isinstance(tensor, torch.Tensor)
    assert tensor.to(torch.float32) is tensor
    assert deferred.rows == []


def test_a_slice_computes_its_rows_alone(deferred: Computed) -> None:
    for key in (slice(1, 3), slice(2, None), slice(None, -3), slice(3, 1), slice(None)):
        rows = deferred.tensor[key]
        assert is_real(rows)
        assert torch.equal(rows, VALUES[key])
    assert deferred.rows == [(1, 3), (2, 4), (0, 1), (3, 3), (0, 4)]


OPERATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sum": lambda tensor: tensor + VALUES,
    "sum, the other way round": lambda tensor: VALUES + tensor,
    "sum with itself": lambda tensor: tensor + tensor,
    "product with rows": lambda tensor: tensor * torch.arange(4.0).reshape(4, 1, 1),
    "columns": lambda tensor: torch.cat([tensor, tensor], dim=1),
    "layers": lambda tensor: torch.stack([tensor, tensor]),
    "one row": lambda tensor: tensor[1],
    "every second row": lambda tensor: tensor[::2],
    "a mask": lambda tensor: tensor[VALUES > 3],
    "chunk": lambda tensor: tensor.chunk(2)[1],
    "mean": lambda tensor: tensor.mean(dim=(1, 2), keepdim=True),
    "numpy": lambda tensor: torch.from_numpy(tensor.numpy()),
    "list": lambda tensor: torch.tensor(tensor.tolist()),
    "deepcopy": copy.deepcopy,
    "pickle": lambda tensor: pickle.loads(pickle.dumps(tensor)),
    "out": lambda tensor: torch.add(tensor, 1, out=torch.empty_like(VALUES)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_any_other_operation_computes_it(name: str, deferred: Computed) -> None:
    result = OPERATIONS[name](deferred.tensor)
    assert is_real(result)
    assert torch.equal(result, OPERATIONS[name](VALUES))
    assert deferred.rows == [(0, 4)]  # once, however often it is used
    assert repr(deferred.tensor) == repr(VALUES)
    assert torch.equal(deferred.tensor, VALUES)


BY_ROWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "type": lambda tensor: tensor.to(torch.float16),
    "product": lambda tensor: tensor * 0.3,
    "product, the other way round": lambda tensor: 0.3 * tensor,
    "quotient": lambda tensor: tensor / 3,
    "several": lambda tensor: ((tensor - 1) * 0.7).to(torch.float64) + 2,
    "zeros before it": lambda tensor: torch.cat([torch.zeros_like(tensor), tensor]),
    "twice": lambda tensor: torch.cat([tensor, tensor]),
    "numbers behind it": lambda tensor: torch.cat([tensor, VALUES], dim=0),
}


@pytest.mark.parametrize("name", BY_ROWS)
def test_what_is_done_to_each_row_is_deferred_too(name: str, deferred: Computed) -> None:
    result, expected = BY_ROWS[name](deferred.tensor), BY_ROWS[name](VALUES)
    assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
    assert deferred.rows == []
    for start, stop in [(0, 2), (1, 3), (len(expected) - 1, len(expected)), (0, len(expected))]:
        assert is_real(result[start:stop])
        assert torch.equal(result[start:stop], expected[start:stop])


def test_rows_of_zeros_cost_nothing(deferred: Computed) -> None:
    guessed = torch.cat([torch.zeros_like(deferred.tensor), deferred.tensor])
    assert not guessed[:4].any()
    assert deferred.rows == []
    assert torch.equal(guessed[4:], VALUES)
    assert deferred.rows == [(0, 4)]


def test_what_is_changed_in_place_stays_so(deferred: Computed) -> None:
    before = deferred.tensor._version
    deferred.tensor.mul_(2)
    assert deferred.tensor._version > before
    deferred.tensor[:, 0] = 7.0
    expected = VALUES * 2
    expected[:, 0] = 7.0
    assert torch.equal(deferred.tensor[1:3], expected[1:3])
    assert torch.equal(deferred.tensor, expected)


def test_arguments_are_computed_however_deep(deferred: Computed) -> None:
    arguments = {"residuals": [deferred.tensor, (None, deferred.tensor)], "by layer": {3: deferred.tensor}}
    found = computed(arguments)
    assert is_real(found["residuals"][0])
    assert is_real(found["residuals"][1][1])
    assert torch.equal(found["by layer"][3], VALUES)
    plain = {"residuals": [VALUES], "scale": 1.0}
    assert computed(plain) is plain
