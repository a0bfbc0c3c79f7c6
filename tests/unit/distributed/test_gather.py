"""The message of full and reuse steps: pieces, scalars, and what is wrong with them."""

from __future__ import annotations

import pytest
import torch

from hybridiff.distributed.status import SLOT
from hybridiff.errors import RankError
from hybridiff.schedule.kinds import StepKind
from support.scripted import STEP, open_channel

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gather_hands_over_pieces_and_reads_scalars(dtype: torch.dtype) -> None:
    _, messages, comm = open_channel(dtype)
    gathered = messages.all_gather({0: torch.tensor([[1.0, 2.0]], dtype=dtype)})
    assert gathered.tolist() == [[1, 2], [10, 10]]
    assert messages.read_status(torch.tensor([0.25, -3.5])).values() == [0.25, -3.5]
    assert messages.read_status().values() == []
    assert comm.log == ["gather"]


def test_scalars_may_be_read_late_and_twice() -> None:
    """As `cfg` does: at the next message, and again for the report."""
    channel, messages, _ = open_channel()
    messages.all_gather({0: torch.tensor([1.0, 2.0])})
    first = messages.read_status(torch.tensor([0.25]))
    channel.begin_step(STEP + 1, StepKind.FULL)
    messages.all_gather({0: torch.tensor([3.0, 4.0])})
    second = messages.read_status(torch.tensor([0.5]))
    assert (second.values(), first.values(), second.values()) == ([0.5], [0.25], [0.5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_at_different_steps(dtype: torch.dtype) -> None:
    channel, messages, comm = open_channel(dtype)
    channel.begin_step(7, StepKind.FULL)
    comm.step = 8
    messages.all_gather({})
    sentence = (
        r"^ranks are at different steps: rank 0 at step 7 \(full\), rank 1 at step 8 \(full\); "
        "make the same call on every rank$"
    )
    with pytest.raises(RankError, match=sentence):
        messages.read_status().values()
    assert comm.log == ["gather"]  # every rank reads the same slots, so nothing needs to be told


def test_ranks_in_steps_of_different_kinds() -> None:
    _, messages, comm = open_channel()
    comm.kind = StepKind.REUSE
    messages.all_gather({})
    with pytest.raises(RankError, match=r"rank 0 at step 3 \(full\), rank 1 at step 3 \(reuse\)"):
        messages.read_status().values()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_predictions_that_are_no_numbers(value: float, dtype: torch.dtype) -> None:
    """They do not touch the status slots, name the rank, and the step in which they were made."""
    channel, messages, comm = open_channel(dtype)
    comm.prediction = value
    messages.all_gather({0: torch.ones(2, dtype=dtype)})
    reading = messages.read_status()
    channel.begin_step(STEP + 1, StepKind.FULL)
    with pytest.raises(RankError, match="rank 1 predicted NaN or infinity in warm-up, step 3; if the network runs in"):
        reading.values()
    assert not channel.interrupted


def test_a_heartbeat_tells_whether_a_prediction_is_finite() -> None:
    channel, messages, comm = open_channel()
    comm.prediction = 0.0
    messages.heartbeat(torch.tensor([1.0, float("inf"), 2.0]))
    with pytest.raises(RankError, match="rank 0 predicted NaN or infinity in warm-up, step 3"):
        messages.read_status().values()
    assert channel.sent.keys() == {"control"}


def test_bytes_of_a_message_and_of_its_status_slots() -> None:
    channel, messages, _ = open_channel(torch.bfloat16, elements=5)
    messages.all_gather({})
    assert channel.sent == {"prediction": 2 * 5 * 2, "control": 2 * SLOT * 2}
