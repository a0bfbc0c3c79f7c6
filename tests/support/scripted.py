"""A second rank that says what a test lets it say, so that one process can test the status protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hybridiff.distributed.channel import Channel
from hybridiff.distributed.comm import LocalComm
from hybridiff.distributed.gather import GatherMessages
from hybridiff.distributed.status import SLOT, Slot, SlotTable, Status
from hybridiff.errors import CommError
from hybridiff.report.timeline import Timeline
from hybridiff.schedule.kinds import StepKind

STEPS, STEP = 10, 3


class Scripted(LocalComm):
    """Rank 0 of two; the other rank says what the test lets it say."""

    def __init__(self) -> None:
        super().__init__(2)
        self.local_ranks = (0,)
        self.status = Status.WORKING
        self.kind = StepKind.FULL
        self.step: int | None = None  # that of rank 0
        self.prediction = 10.0
        self.story: Any = (Status.WORKING, "step 3", None)
        self.answer: Any = None  # to the first object, before its story
        self.log: list[str] = []
        self.dead = False

    def all_gather(self, buffers: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        self._note("gather")
        out[0].copy_(buffers[0])
        out[1].fill_(self.prediction)
        out[1, -SLOT:].copy_(buffers[0][-SLOT:])  # the same step, unless told otherwise
        low_and_high = out[1, -2:].float().tolist()
        step = int(low_and_high[0] + 128 * low_and_high[1]) if self.step is None else self.step
        SlotTable(STEPS, out).write(out[1], Slot(self.status, self.kind, step))

    def all_gather_object(self, thing: Any) -> list[Any]:
        self._note("objects")
        answer, self.answer = self.answer, None
        return [thing, self.story if answer is None else answer]

    def _note(self, message: str) -> None:
        self.log.append(message)
        if self.dead:
            self.fail()
            raise CommError("gone")


def closed_channel() -> tuple[Channel, Scripted]:
    comm = Scripted()
    return Channel(comm, lambda: "the start of the run", Timeline()), comm


def open_channel(dtype: torch.dtype = torch.float32, elements: int = 2) -> tuple[Channel, GatherMessages, Scripted]:
    comm = Scripted()
    channel = Channel(comm, lambda: f"warm-up, step {channel.step}", Timeline())
    like = torch.zeros(1, dtype=dtype)
    messages = GatherMessages(channel, elements, like)
    channel.open(STEPS, like, {StepKind.FULL: messages, StepKind.REUSE: messages})
    channel.begin_step(STEP, StepKind.FULL)
    return channel, messages, comm
