"""The messages of one run: predictions and boundaries, and in their tails how each rank fares.

Every rank issues the same messages in the same order, whatever happens to it: a rank that fails, or leaves the
denoising loop early, still takes part in the messages that the others wait for and says so in their tails. So no
rank waits for one that is gone, and every rank raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from enum import IntEnum
from typing import TypeVar

import torch

from ..report.report import Timeline
from ..schedule.kinds import StepKind
from .comm import Comm, CommError, RankError

T = TypeVar("T")


class Status(IntEnum):
    """How a rank fares, as it stands in the tail of its packets."""

    WORKING = 0
    INTERRUPTED = 1
    FINISHED = 2
    FAILED = 3


class Message(IntEnum):
    """The kinds of message that a step is made of."""

    GATHER = 0
    SWAP = 1
    HAND_OUT = 2


_SCRIPTS = {
    StepKind.FULL: (Message.GATHER,),
    StepKind.REUSE: (Message.GATHER,),
    StepKind.PIPELINED: (Message.SWAP, Message.HAND_OUT),
    StepKind.SKIPPED: (),
}


class Channel:
    """What the ranks of one run tell each other.

    Args:
        comm: The ranks.
        position: Says where this rank is, for errors: "warm-up, step 7".
        timeline: Where waits are recorded.

    Attributes:
        status: Goes out with the next packet.
        position: Says where this rank is, for errors.
        interrupted: True once some rank asked for the generation to stop.
        sent: Bytes put on the wire so far by all ranks together, by purpose; tails count as "control".
        kind_ahead: Says of which kind the next step with messages is; a rank that leaves takes part in them.
    """

    def __init__(self, comm: Comm, position: Callable[[], str], timeline: Timeline) -> None:
        self.comm = comm
        self.status = Status.WORKING
        self.interrupted = False
        self.sent: Counter[str] = Counter()
        self.kind_ahead: Callable[[], StepKind] = lambda: StepKind.FULL
        self.position = position
        self._timeline = timeline
        self._script: list[Message] = []
        self._packets: dict[int, torch.Tensor] = {}
        self._gathered: torch.Tensor | None = None
        self._pipeline: _PipelinePackets | None = None

    @property
    def is_open(self) -> bool:
        """Whether packets have a size yet; until then ranks agree by small objects."""
        return self._gathered is not None

    @property
    def room(self) -> int:
        """Elements of a prediction that a packet has room for."""
        assert self._gathered is not None
        return self._gathered.shape[1] - 1

    def agree(self, thing: T, what: str) -> list[T]:
        """Exchange an object with all ranks, all of which must still be in this run.

        Raises:
            RankError: a rank failed or finished before it came this far; names it.
        """
        replies = self._guard(lambda: self.comm.exchange((self.status, thing)), what)
        if any(status >= Status.FINISHED for status, _ in replies):
            self._raise_together(None)
        return [reply for _, reply in replies]

    def open(self, elements: int, like: torch.Tensor) -> None:
        """Allocate the packets of the run: `elements` of a prediction each, and the tail."""
        self._packets = {rank: like.new_zeros(elements + 1) for rank in self.comm.members}
        self._gathered = like.new_zeros(self.comm.size, elements + 1)

    def open_pipeline(
        self, peers: Mapping[int, int], elements: Mapping[int, int], source: int, like: torch.Tensor
    ) -> None:
        """Allocate the packets of pipelined steps.

        Args:
            peers: The rank with which each rank swaps boundaries.
            elements: Elements of the boundary that each rank sends.
            source: The rank that makes the prediction.
            like: A tensor with their dtype and device.
        """
        self._pipeline = _PipelinePackets(self.comm, peers, elements, source, like)

    def begin_step(self, kind: StepKind) -> None:
        """Say which messages the step now beginning is made of."""
        self._script = list(_SCRIPTS[kind])

    def gather(self, pieces: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Hand every rank the pieces of all ranks.

        Args:
            pieces: What each of this process's ranks has to say, of any shape and at most the packet's size; a rank
                without an entry has nothing.

        Returns:
            (size, elements); a view that the next gather overwrites.
        """
        assert self._gathered is not None
        gathered = self._gathered
        for rank, packet in self._packets.items():
            _fill(packet, (pieces[rank],) if rank in pieces else (), self.status)
        self._send(lambda: self.comm.gather(self._packets, gathered), "gather the predictions")
        self._count("prediction", gathered.shape[1] - 1, gathered.element_size(), self.comm.size * (self.comm.size - 1))
        self._script = []
        return gathered[:, :-1]

    def swap(self, boundaries: Mapping[int, tuple[torch.Tensor, ...]]) -> dict[int, torch.Tensor]:
        """Swap boundaries with the peer: the first message of a pipelined step.

        Args:
            boundaries: What each of this process's ranks sends; a rank without an entry has nothing.

        Returns:
            What each of them received, 1-D; views that the next swap overwrites.
        """
        assert self._pipeline is not None
        pipeline = self._pipeline
        for rank, packet in pipeline.outgoing.items():
            _fill(packet, boundaries.get(rank, ()), self.status)
        self._send(
            lambda: self.comm.swap(pipeline.peers, pipeline.outgoing, pipeline.incoming), "swap the stages' boundaries"
        )
        for elements in pipeline.elements.values():
            self._count("boundary", elements, pipeline.element_size, 1)
        self._script = [Message.HAND_OUT]
        return {rank: packet[:-1] for rank, packet in pipeline.incoming.items()}

    def hand_out(self, prediction: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Give every rank the prediction of a pipelined step: its last message.

        Args:
            prediction: The prediction under the rank that made it, if this process plays that rank.

        Returns:
            The prediction, 1-D; a view that the next gather overwrites.
        """
        assert self._pipeline is not None
        source = self._pipeline.source
        if source in self._packets:
            _fill(self._packets[source], (prediction[source],) if source in prediction else (), self.status)
        self._send(lambda: self.comm.hand_out(source, self._packets), "hand out the prediction")
        packet = self._packets[self.comm.rank]
        self._count("prediction", packet.numel() - 1, packet.element_size(), self.comm.size - 1)
        self._script = []
        return packet[:-1]

    def beat(self) -> None:
        """Tell each other how the ranks fare in a step that has nothing to send.

        Raises:
            RankError: a rank failed, or left the loop while this one goes on.
        """
        self.gather({})
        self.settle()

    def beat_pipelined(self) -> None:
        """Likewise in a pipelined step, of which nothing but the messages takes place.

        Raises:
            RankError: a rank failed, or left the loop while this one goes on.
        """
        self.swap({})
        self.hand_out({})
        self.settle_pipelined()

    def settle(self, scalars: torch.Tensor | None = None) -> list[float]:
        """Read the tails of a full step's gather, and scalars (1-D) with them: the one host synchronisation of a step.

        Raises:
            RankError: a rank failed, or left the loop while this one goes on.
        """
        assert self._gathered is not None
        tails = self._gathered[:, -1].float()
        values: list[float] = (tails if scalars is None else torch.cat([tails, scalars])).tolist()
        self._heed([Status(int(value)) for value in values[: self.comm.size]])
        return values[self.comm.size :]

    def settle_pipelined(self) -> None:
        """Read the tails of a pipelined step: its one host synchronisation.

        Raises:
            RankError: a rank failed, or left the loop while this one goes on.
        """
        self._heed(self._pipelined_statuses())

    def finish(self) -> None:
        """Leave the run, and see that all ranks do so at the same step.

        Raises:
            RankError: a rank failed, or still waits for a prediction.
        """
        if not all(status is Status.FINISHED for status in self._leave(Status.FINISHED)):
            self._raise_together(None)

    def fail(self, error: BaseException) -> None:
        """Leave the run because of an error of this rank, telling the others; raises nothing."""
        if self.comm.broken:
            return
        try:
            self._leave(Status.FAILED)
            self._raise_together(error)
        except RankError:
            pass  # this rank's own error is the one to raise

    def _leave(self, status: Status) -> list[Status]:
        """Take part in the messages that the others wait for, until they know; how all ranks fare."""
        self.status = status
        if not self.is_open:
            replies = self._guard(lambda: self.comm.exchange((status, None)), "the end of the run")
            return [reply for reply, _ in replies]
        if self._script == [Message.HAND_OUT]:
            # Past the swap of a pipelined step: only the source has a packet left in which to say so.
            self.hand_out({})
            if self._is_source or self._peer_status() >= Status.FINISHED:
                return self._pipelined_statuses()
        if not self._script:
            self.begin_step(self.kind_ahead())
        if self._script == [Message.GATHER]:
            return [Status(int(value)) for value in self._control_gather()]
        self.swap({})
        self.hand_out({})
        return self._pipelined_statuses()

    def _control_gather(self) -> list[float]:
        self.gather({})
        assert self._gathered is not None
        tails: list[float] = self._gathered[:, -1].float().tolist()
        return tails

    @property
    def _is_source(self) -> bool:
        return self._pipeline is not None and self._pipeline.source in self.comm.members

    def _pipelined_statuses(self) -> list[Status]:
        """How the two ranks of a pipelined step fare, by order of rank."""
        assert self._pipeline is not None
        statuses = {self.comm.rank: self.status, self._pipeline.peers[self.comm.rank]: self._peer_status()}
        return [statuses[rank] for rank in sorted(statuses)]

    def _peer_status(self) -> Status:
        """What the peer said in the messages of a pipelined step; the source's last word counts."""
        assert self._pipeline is not None
        mine = self.comm.rank
        theirs = self._pipeline.incoming[mine][-1:]
        if not self._is_source:
            theirs = torch.maximum(theirs, self._packets[mine][-1:].to(theirs.dtype))
        return Status(int(theirs.float().tolist()[0]))

    def _heed(self, statuses: list[Status]) -> None:
        if any(status >= Status.FINISHED for status in statuses):
            self._raise_together(None)
        self.interrupted = self.interrupted or Status.INTERRUPTED in statuses

    def _raise_together(self, error: BaseException | None) -> None:
        """Every rank says what happened to it, and every rank raises the same story."""
        story = (self.status, self.position(), None if error is None else f"{type(error).__name__}: {error}")
        stories = self._guard(lambda: self.comm.exchange(story), "the error of another rank")
        failed = [
            f"rank {rank} failed in {where}: {cause}"
            for rank, (status, where, cause) in enumerate(stories)
            if status is Status.FAILED
        ]
        left = [
            f"rank {rank} left the denoising loop in {where}" if status is Status.FINISHED else f"rank {rank} goes on"
            for rank, (status, where, _) in enumerate(stories)
        ]
        raise RankError("; ".join(failed or left))

    def _send(self, send: Callable[[], None], what: str) -> None:
        with self._timeline.span(self.comm.rank, f"wait: {what}", "message"):
            self._guard(send, what)

    def _guard(self, send: Callable[[], T], what: str) -> T:
        try:
            return send()
        except CommError as error:
            raise RankError(f"rank {self.comm.rank} in {self.position()}, waiting to {what}: {error}") from error

    def _count(self, purpose: str, elements: int, element_size: int, copies: int) -> None:
        self.sent[purpose] += copies * elements * element_size
        self.sent["control"] += copies * element_size  # the tail


class _PipelinePackets:
    """The packets of pipelined steps, allocated once."""

    def __init__(
        self, comm: Comm, peers: Mapping[int, int], elements: Mapping[int, int], source: int, like: torch.Tensor
    ) -> None:
        self.peers = dict(peers)
        self.elements = dict(elements)
        self.source = source
        self.element_size = like.element_size()
        self.outgoing = {rank: like.new_zeros(elements[rank] + 1) for rank in comm.members}
        self.incoming = {rank: like.new_zeros(elements[peers[rank]] + 1) for rank in comm.members}


def _fill(packet: torch.Tensor, tensors: tuple[torch.Tensor, ...], status: Status) -> None:
    start = 0
    for tensor in tensors:
        packet[start : start + tensor.numel()].copy_(tensor.reshape(-1))
        start += tensor.numel()
    packet[-1] = float(status)
