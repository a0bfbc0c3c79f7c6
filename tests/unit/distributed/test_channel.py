from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from hybridiff.distributed.channel import Channel, Status
from hybridiff.distributed.comm import CommError, LocalComm, RankError
from hybridiff.report.report import Timeline


class Scripted(LocalComm):
    """Rank 0 of two; the other rank says what the test lets it say."""

    def __init__(self) -> None:
        super().__init__(2)
        self.members = (0,)
        self.status = Status.WORKING
        self.story: Any = (Status.WORKING, "step 3", None)
        self.log: list[str] = []
        self.dead = False

    def gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        self._note("gather")
        out[0].copy_(packets[0])
        out[1].fill_(10)
        out[1, -1] = float(self.status)

    def exchange(self, thing: Any) -> list[Any]:
        self._note("exchange")
        return [thing, self.story]

    def _note(self, message: str) -> None:
        self.log.append(message)
        if self.dead:
            self.broken = True
            raise CommError("gone")


def open_channel(dtype: torch.dtype = torch.float32) -> tuple[Channel, Scripted]:
    comm = Scripted()
    channel = Channel(comm, lambda: "warm-up, step 3", Timeline())
    channel.open(3, torch.zeros(1, dtype=dtype))
    return channel, comm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gather_hands_over_pieces_and_settles_with_scalars(dtype: torch.dtype) -> None:
    channel, comm = open_channel(dtype)
    gathered = channel.gather({0: torch.tensor([[1.0, 2.0]], dtype=dtype)})
    assert gathered.tolist() == [[1, 2, 0], [10, 10, 10]]
    assert channel.settle(torch.tensor([0.25, -3.5])) == [0.25, -3.5]
    assert channel.settle() == []
    assert comm.log == ["gather"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("status", list(Status))
def test_every_status_survives_the_tail(status: Status, dtype: torch.dtype) -> None:
    channel, comm = open_channel(dtype)
    comm.status = status
    channel.gather({0: torch.full((3,), float("nan"), dtype=dtype)})  # bad predictions do not touch the tail
    if status < Status.FINISHED:
        channel.settle()
        assert channel.interrupted is (status is Status.INTERRUPTED)
    else:
        with pytest.raises(RankError):
            channel.settle()


def test_an_interrupt_is_not_forgotten() -> None:
    channel, comm = open_channel()
    comm.status = Status.INTERRUPTED
    channel.beat()
    comm.status = Status.WORKING
    channel.beat()
    assert channel.interrupted


def test_an_error_of_another_rank_is_told_with_its_place() -> None:
    channel, comm = open_channel()
    comm.status = Status.FAILED
    comm.story = (Status.FAILED, "warm-up, step 2", "ValueError: dark")
    channel.gather({})
    with pytest.raises(RankError, match=r"^rank 1 failed in warm-up, step 2: ValueError: dark$"):
        channel.settle()
    assert comm.log == ["gather", "exchange"]


def test_a_rank_that_left_early_is_named() -> None:
    channel, comm = open_channel()
    comm.status = Status.FINISHED
    comm.story = (Status.FINISHED, "warm-up, step 2", None)
    channel.gather({})
    with pytest.raises(RankError, match="rank 0 goes on; rank 1 left the denoising loop in warm-up, step 2"):
        channel.settle()


def test_a_failing_rank_takes_part_in_the_gather_that_others_wait_for() -> None:
    channel, comm = open_channel()
    channel.fail(ValueError("mine"))  # raises nothing: the error itself is on its way
    assert channel.status is Status.FAILED
    assert comm.log == ["gather", "exchange"]


def test_before_packets_have_a_size_ranks_leave_by_an_exchange() -> None:
    comm = Scripted()
    channel = Channel(comm, lambda: "the start of the run", Timeline())
    assert not channel.is_open
    comm.story = (Status.FINISHED, None)
    channel.finish()
    assert comm.log == ["exchange"]


def test_finishing_while_another_goes_on_raises() -> None:
    channel, _ = open_channel()
    with pytest.raises(RankError, match="rank 0 left the denoising loop in warm-up, step 3; rank 1 goes on"):
        channel.finish()


def test_a_broken_group_is_left_alone() -> None:
    channel, comm = open_channel()
    comm.dead = True
    with pytest.raises(RankError, match=r"^rank 0 in warm-up, step 3, waiting .*: gone$"):
        channel.gather({})
    channel.fail(ValueError("mine"))
    assert comm.log == ["gather"]


def test_agreeing_returns_what_every_rank_said_while_all_take_part() -> None:
    comm = Scripted()
    channel = Channel(comm, lambda: "the start of the run", Timeline())
    comm.story = (Status.WORKING, "theirs")
    assert channel.agree("mine", "a test") == ["mine", "theirs"]
