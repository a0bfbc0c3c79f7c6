"""The status protocol of one run, with a second rank that says what the test lets it say."""

from __future__ import annotations

import functools

import pytest
import torch

from hybridiff.distributed.readback import Readback
from hybridiff.distributed.status import Status
from hybridiff.errors import RankError
from hybridiff.schedule.kinds import StepKind
from support.events import FakeEvent
from support.scripted import STEP, closed_channel, open_channel

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("status", list(Status))
def test_every_status_is_heard(status: Status, dtype: torch.dtype) -> None:
    channel, messages, comm = open_channel(dtype)
    comm.status = status
    messages.all_gather({0: torch.ones(2, dtype=dtype)})
    if status.is_leaving:
        with pytest.raises(RankError):
            messages.read_status().values()
    else:
        messages.read_status().values()
        assert channel.interrupted is (status is Status.INTERRUPTED)


def test_what_nobody_asked_for_is_heeded_before_the_next_message() -> None:
    channel, messages, comm = open_channel()
    comm.status = Status.FAILED
    comm.story = (Status.FAILED, "warm-up, step 2", "ValueError: dark")
    messages.all_gather({})
    messages.read_status()
    assert comm.log == ["gather"]
    channel.begin_step(STEP + 1, StepKind.FULL)
    with pytest.raises(RankError, match=r"^rank 1 failed in warm-up, step 2: ValueError: dark$"):
        messages.all_gather({})
    assert comm.log == ["gather", "objects"]  # nothing more is sent


def test_an_interrupt_is_not_forgotten() -> None:
    channel, messages, comm = open_channel()
    comm.status = Status.INTERRUPTED
    messages.heartbeat(torch.zeros(1))
    messages.read_status()
    assert not channel.interrupted  # not yet
    comm.status = Status.WORKING
    messages.heartbeat(torch.zeros(1))
    messages.read_status().values()
    assert channel.interrupted


def test_an_error_of_another_rank_is_told_with_its_place() -> None:
    _, messages, comm = open_channel()
    comm.status = Status.FAILED
    comm.story = (Status.FAILED, "warm-up, step 2", "ValueError: dark")
    messages.all_gather({})
    with pytest.raises(RankError, match=r"^rank 1 failed in warm-up, step 2: ValueError: dark$"):
        messages.read_status().values()
    assert comm.log == ["gather", "objects"]


def test_a_rank_that_left_early_is_named() -> None:
    _, messages, comm = open_channel()
    comm.status = Status.FINISHED
    comm.story = (Status.FINISHED, "warm-up, step 2", None)
    messages.all_gather({})
    with pytest.raises(RankError, match="rank 0 goes on; rank 1 left the denoising loop in warm-up, step 2"):
        messages.read_status().values()


def test_a_rank_that_leaves_need_not_be_at_the_same_step() -> None:
    """It takes part in the next message that it knows of; why it left is what counts."""
    _, messages, comm = open_channel()
    comm.step, comm.status = 8, Status.FAILED
    comm.story = (Status.FAILED, "parallel, step 6", "ValueError: dark")
    messages.all_gather({})
    with pytest.raises(RankError, match="rank 1 failed in parallel, step 6"):
        messages.read_status().values()


def test_a_failing_rank_takes_part_in_the_gather_that_others_wait_for() -> None:
    channel, _, comm = open_channel()
    channel.fail(ValueError("mine"))  # raises nothing: the error itself is on its way
    assert channel.status is Status.FAILED
    assert comm.log == ["gather", "objects"]


def test_a_rank_that_fails_after_its_messages_takes_part_in_those_of_the_next_step() -> None:
    channel, messages, comm = open_channel()
    messages.all_gather({})
    messages.read_status()
    channel.ahead = lambda: (STEP + 4, StepKind.REUSE)
    channel.fail(ValueError("mine"))
    assert comm.log == ["gather", "gather", "objects"]
    assert (channel.step, channel.kind) == (STEP + 4, StepKind.REUSE)


def test_a_rank_that_fails_where_another_did_sends_nothing_more() -> None:
    """The other one waits for the stories already."""
    channel, messages, comm = open_channel()
    comm.status = Status.FAILED
    messages.all_gather({})
    messages.read_status()
    channel.fail(ValueError("mine"))
    assert comm.log == ["gather", "objects"]


def test_a_rank_that_fails_where_steps_differ_sends_nothing_more() -> None:
    """The others read the same slots, and leave by themselves."""
    channel, messages, comm = open_channel()
    comm.step = 8
    messages.all_gather({})
    messages.read_status()
    channel.fail(ValueError("mine"))
    assert comm.log == ["gather"]


def test_what_the_last_message_said_is_heeded_at_the_end() -> None:
    channel, messages, comm = open_channel()
    comm.prediction = float("nan")
    messages.all_gather({})
    messages.read_status()
    with pytest.raises(RankError, match="rank 1 predicted NaN"):
        channel.finish()


def test_before_buffers_have_a_size_ranks_leave_by_objects() -> None:
    channel, comm = closed_channel()
    assert not channel.is_open
    comm.story = (Status.FINISHED, None)
    channel.finish()
    assert comm.log == ["objects"]


def test_finishing_while_another_goes_on_raises() -> None:
    channel, _, _ = open_channel()
    with pytest.raises(RankError, match="rank 0 left the denoising loop in warm-up, step 3; rank 1 goes on"):
        channel.finish()


def test_a_broken_group_is_left_alone() -> None:
    channel, messages, comm = open_channel()
    comm.dead = True
    with pytest.raises(RankError, match=r"^rank 0 in warm-up, step 3, waiting to gather the predictions: gone$"):
        messages.all_gather({})
    channel.fail(ValueError("mine"))
    assert comm.log == ["gather"]


def test_a_status_that_never_arrives_breaks_the_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """On GPUs this is where a lost rank shows: messages are only put into the stream."""
    never = functools.partial(Readback, make_event=lambda device: FakeEvent(ready_after=None))
    monkeypatch.setattr("hybridiff.distributed.reading.Readback", never)
    channel, messages, comm = open_channel()
    comm.timeout = 0.05
    messages.all_gather({})
    messages.read_status()
    sentence = r"^rank 0 in warm-up, step 3, waiting to hear how the ranks fare: no answer .* within 0\.05 s"
    with pytest.raises(RankError, match=sentence):
        channel.heed_unread()
    assert comm.broken
    channel.fail(ValueError("mine"))
    assert comm.log == ["gather"]


def test_consensus_returns_what_every_rank_said_while_all_take_part() -> None:
    channel, comm = closed_channel()
    comm.answer = (Status.WORKING, "theirs")
    assert channel.consensus("mine", "a test") == ["mine", "theirs"]
    comm.answer, comm.story = (Status.FAILED, None), (Status.FAILED, "the start of the run", "ValueError: dark")
    with pytest.raises(RankError, match="rank 1 failed in the start of the run: ValueError: dark"):
        channel.consensus("mine", "a test")


def test_consensus_first_heeds_what_the_latest_message_said() -> None:
    channel, messages, comm = open_channel()
    comm.status, comm.story = Status.FAILED, (Status.FAILED, "warm-up, step 2", "ValueError: dark")
    messages.all_gather({})
    messages.read_status()
    with pytest.raises(RankError, match="rank 1 failed in warm-up, step 2: ValueError: dark"):
        channel.consensus("mine", "a test")
    assert comm.log == ["gather", "objects"]
