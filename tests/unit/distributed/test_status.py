"""Status slots: what a rank writes at the end of a buffer, every other rank reads there, whatever the precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.arguments import MOST_STEPS
from hybridiff.distributed.status import SLOT, Slot, SlotTable, Status, digest
from hybridiff.schedule.kinds import StepKind

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def written(slot: Slot, steps: int, dtype: torch.dtype) -> Slot:
    buffer = torch.full((3 + SLOT,), float("nan"), dtype=dtype)
    SlotTable(steps, buffer).write(buffer, slot)
    assert buffer[:3].isnan().all()  # what lies before it is left alone
    return Slot.decode(buffer[3:].float().tolist())


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_status_and_kind_comes_back(dtype: torch.dtype) -> None:
    for status, kind, is_guided in itertools.product(Status, StepKind, (True, False)):
        slot = Slot(status, kind, 3, is_guided)
        assert written(slot, 10, dtype) == slot


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_step_comes_back(dtype: torch.dtype) -> None:
    """bfloat16 counts to 256 without a gap, float16 to 2048."""
    steps = 2500
    buffer = torch.zeros(SLOT, dtype=dtype)
    table = SlotTable(steps, buffer)
    for step in range(steps + 1):
        table.write(buffer, Slot(Status.WORKING, StepKind.FULL, step))
        assert Slot.decode(buffer.float().tolist()).step == step


@given(digits=st.tuples(st.integers(0, 127), st.integers(0, MOST_STEPS // 128)), dtype=st.sampled_from(DTYPES))
def test_both_digits_of_the_longest_run_are_exact(digits: tuple[int, int], dtype: torch.dtype) -> None:
    low, high = torch.tensor(digits).to(dtype).float().tolist()
    assert Slot.decode([0.0, 0.0, 0.0, 0.0, low, high]).step == digits[0] + 128 * digits[1]


def test_a_step_past_the_end_of_the_run_is_its_end() -> None:
    assert written(Slot(Status.FINISHED, StepKind.FULL, 10), 10, torch.float32).step == 10
    assert written(Slot(Status.FINISHED, StepKind.FULL, 99), 10, torch.float32).step == 10


def test_only_ranks_that_are_done_are_leaving() -> None:
    assert [status for status in Status if status.is_leaving] == [Status.FINISHED, Status.FAILED]


def sent(sample: torch.Tensor, dtype: torch.dtype) -> Slot:
    buffer = torch.zeros(SLOT, dtype=dtype)
    SlotTable(9, buffer).write(buffer, Slot(Status.WORKING, StepKind.FULL, 3), digest(sample))
    return Slot.decode(buffer.float().tolist())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_digest_tells_another_sample_from_one_that_was_rounded_otherwise(dtype: torch.dtype) -> None:
    sample = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    own = sent(sample.to(dtype), dtype)
    rounded = sample.to(dtype) * (1 + torch.finfo(dtype).eps * torch.randn(sample.shape).sign()).to(dtype)
    assert sent(rounded, dtype).has_sample_of(own)
    others = {
        "moved": sample.roll(4, -1),
        "larger": sample * 1.05,
        "negative": -sample,
        "noisy": sample + 0.3 * torch.randn(sample.shape, generator=torch.Generator().manual_seed(2)),
        "another": torch.randn(sample.shape, generator=torch.Generator().manual_seed(3)),
    }
    assert not [name for name, other in others.items() if sent(other.to(dtype), dtype).has_sample_of(own)]


def test_what_is_not_finite_or_zero_is_not_compared() -> None:
    own = sent(torch.randn(1, 4, 8, 8), torch.float32)
    for sample in (torch.zeros(1, 4, 8, 8), torch.full((1, 4, 8, 8), math.nan)):
        assert sent(sample, torch.float32).has_sample_of(sent(sample, torch.float32))
    assert sent(torch.full((1, 4, 8, 8), math.nan), torch.float32).has_sample_of(own)
