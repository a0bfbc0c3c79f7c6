"""Status slots: what a rank writes at the end of a buffer, every other rank reads there, whatever the precision."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.arguments import MOST_STEPS
from hybridiff.distributed.status import SLOT, Slot, SlotTable, Status
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
    assert Slot.decode([0.0, 0.0, low, high]).step == digits[0] + 128 * digits[1]


def test_a_step_past_the_end_of_the_run_is_its_end() -> None:
    assert written(Slot(Status.FINISHED, StepKind.FULL, 10), 10, torch.float32).step == 10
    assert written(Slot(Status.FINISHED, StepKind.FULL, 99), 10, torch.float32).step == 10


def test_only_ranks_that_are_done_are_leaving() -> None:
    assert [status for status in Status if status.is_leaving] == [Status.FINISHED, Status.FAILED]
