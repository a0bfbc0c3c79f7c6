"""What the parent makes of what its ranks say; here they are played by this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hybridiff.errors import EngineError
from hybridiff.launch.launcher import RankGroup, RankProcess
from hybridiff.launch.protocol import (
    Call,
    Cancel,
    Failed,
    Generation,
    Reply,
    Request,
    StepDone,
    Warned,
    pack,
    receive,
    send,
)
from hybridiff.launch.worker import PipelineRank
from hybridiff.report.report import RunReport

CALL = pack(Call({"prompt": "a ring"}, 3))
DONE = Generation("an image", RunReport("cfg", 2), 3)
CRASH = Failed("KeyError", "3", "trace")


class PlayedRank(RankProcess):
    """A rank without a process: what it says is written to its end of the connection."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank = rank
        self._log = folder / "log"
        self._timeout, self._has_stopped = 0.3, False
        self.connection, self.theirs = Pipe()
        self.process: Any = SimpleNamespace(
            pid=1, returncode=None, poll=lambda: None, wait=lambda timeout=0.0: 1, kill=self.theirs.close
        )

    def say(self, request: int, *messages: Any) -> None:
        for message in messages:
            send(self.theirs, Reply(request, message))

    def heard(self) -> list[Any]:
        heard = []
        while self.theirs.poll():
            heard.append(receive(self.theirs))
        return heard


@pytest.fixture
def ranks(tmp_path: Path) -> list[PlayedRank]:
    return [PlayedRank(rank, tmp_path) for rank in range(2)]


@pytest.fixture
def group(ranks: list[PlayedRank], tmp_path: Path) -> Iterator[RankGroup]:
    group = RankGroup(ranks, tmp_path / "folder", timeout=0.3)
    yield group
    group.end()


def test_a_request_reaches_every_rank_and_the_leader_answers(group: RankGroup, ranks: list[PlayedRank]) -> None:
    steps: list[Any] = []
    ranks[0].say(1, StepDone(1, 2), StepDone(2, 2), DONE)
    ranks[1].say(1, Generation(None, DONE.report, 3))
    assert group.generate(CALL, lambda *step: steps.append(step)) == DONE
    assert steps == [(1, 2), (2, 2)]
    assert ranks[0].heard() == ranks[1].heard() == [Request(1, CALL)]
    assert group.is_usable


def test_no_answer_to_an_earlier_request_is_taken_for_one_to_this(group: RankGroup, ranks: list[PlayedRank]) -> None:
    steps: list[Any] = []
    for rank in ranks:
        rank.say(0, CRASH, StepDone(7, 9), Generation("of another request", DONE.report, 9))
        rank.say(1, DONE)
    assert group.generate(CALL, lambda *step: steps.append(step)) == DONE
    assert steps == []


def test_an_error_of_the_caller_cancels_the_request_whose_end_is_awaited(
    group: RankGroup, ranks: list[PlayedRank]
) -> None:
    def refuse(done: int, total: int) -> None:
        raise ValueError("no more of this")

    ranks[1].say(1, CRASH)
    ranks[0].say(1, StepDone(1, 2))
    with pytest.raises(ValueError, match="no more of this"):
        group.generate(CALL, refuse)
    for rank in ranks:
        assert rank.heard() == [Request(1, CALL), Cancel(1)]
    ranks[0].say(1, StepDone(2, 2), CRASH)
    group.drain()  # rank 1 has answered before
    assert group.is_usable
    for rank in ranks:
        rank.say(2, DONE)
    assert group.generate(CALL, None) == DONE


def test_ranks_that_do_not_come_to_an_end_of_a_cancelled_request_are_unusable(
    group: RankGroup, ranks: list[PlayedRank]
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    ranks[0].say(1, StepDone(1, 2))
    with pytest.raises(KeyboardInterrupt):
        group.generate(CALL, interrupt)
    assert group.is_usable
    group.drain()
    assert not group.is_usable


def test_an_interrupt_in_the_middle_of_a_message_makes_the_ranks_unusable(
    group: RankGroup, ranks: list[PlayedRank], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(request: int) -> None:
        raise KeyboardInterrupt

    ranks[0].say(1, DONE)
    monkeypatch.setattr(ranks[0], "receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        group.generate(CALL, None)
    assert not group.is_usable


def test_a_failure_that_all_ranks_outlive_leaves_them_usable(group: RankGroup, ranks: list[PlayedRank]) -> None:
    ranks[0].say(1, DONE)
    ranks[1].say(1, CRASH)
    with pytest.raises(EngineError, match="rank 1 failed while generating: KeyError: 3"):
        group.generate(CALL, None)
    assert group.is_usable


def test_ranks_that_lost_touch_are_unusable(group: RankGroup, ranks: list[PlayedRank]) -> None:
    for rank in ranks:
        rank.say(1, Failed("CommError", "no answer", "trace", is_echo=True, is_lost=True))
    with pytest.raises(EngineError, match="no answer"):
        group.generate(CALL, None)
    assert not group.is_usable


def test_silence_has_a_deadline_that_signs_of_life_put_off(
    group: RankGroup, ranks: list[PlayedRank], caplog: pytest.LogCaptureFixture
) -> None:
    ranks[0].say(1, Warned("that is odd"), StepDone(1, 2))
    with pytest.raises(EngineError, match=r"no sign of life from ranks 0, 1 for 0.3 s while generating after step 1"):
        group.generate(CALL, None)
    assert not group.is_usable
    assert caplog.messages == ["that is odd"]


@pytest.mark.parametrize("way", ["sent", "heard"])
def test_a_rank_that_stops_within_a_message_is_ended(way: str, group: RankGroup, ranks: list[PlayedRank]) -> None:
    call = CALL
    if way == "sent":
        call = pack(Call({"image": b" " * 2**23}, 3))  # more than fits between them, and nobody takes it
    else:
        os.write(ranks[1].theirs.fileno(), (2**20).to_bytes(4, "big") + b"the first bytes of what was to be a million")
    ranks[0].say(1, DONE)
    heard = threading.Thread(target=lambda: [receive(ranks[0].theirs), ranks[0].say(1, DONE)], daemon=True)
    heard.start()
    with pytest.raises(EngineError, match=r"rank 1 stopped for 0.3 s within a message, and was ended, while"):
        group.generate(call, None)
    assert not group.is_usable
    heard.join(10.0)


def test_a_rank_that_hung_up_is_dead(group: RankGroup, ranks: list[PlayedRank]) -> None:
    ranks[1].theirs.close()
    ranks[0].say(1, DONE)
    with pytest.raises(EngineError, match="rank 1 ended with exit code 1 while generating"):
        group.generate(CALL, None)
    assert not group.is_usable


@pytest.mark.parametrize(
    ("broken", "answers", "lost"), [(False, True, False), (True, True, True), (False, False, True)]
)
def test_a_rank_is_lost_without_the_others_and_without_its_gpu(
    monkeypatch: pytest.MonkeyPatch, broken: bool, answers: bool, lost: bool
) -> None:
    def synchronize(device: torch.device) -> None:
        if not answers:
            raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    rank = object.__new__(PipelineRank)
    pipe = SimpleNamespace(device=torch.device("cuda"))
    rank.parallel = SimpleNamespace(pipe=pipe, comm=SimpleNamespace(broken=broken))  # type: ignore[assignment]
    assert rank.is_lost is lost
