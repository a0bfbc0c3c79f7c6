"""How ranks talk: a process group with a deadline, or the same ranks played in one process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


class RankError(RuntimeError):
    """A generation that cannot go on because of another rank; raised on every rank."""


class CommError(RankError):
    """A message that did not come: a rank died, or the deadline passed. The group is of no further use."""


class Comm(ABC):
    """The ranks of one generation, as strategies see them.

    A strategy does the work of every rank in `members` and hands over one packet for each, so that the same code
    runs one rank a process (`ProcessComm`) and all of them in one (`LocalComm`).

    Attributes:
        size: Number of ranks.
        members: Ranks that this process plays.
        broken: True once a message failed; no further message is tried then.
    """

    size: int
    members: tuple[int, ...]

    def __init__(self) -> None:
        self.broken = False

    @staticmethod
    def world(timeout: float) -> Comm:
        """The ranks that torchrun or an Engine started; a single local one where there is no process group."""
        return ProcessComm(timeout) if dist.is_available() and dist.is_initialized() else LocalComm(1)

    @property
    def rank(self) -> int:
        """The first rank this process plays."""
        return self.members[0]

    @property
    def is_leader(self) -> bool:
        """Whether this process plays rank 0, which writes, shows progress and decodes."""
        return 0 in self.members

    @abstractmethod
    def gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        """Hand every rank the packets of all ranks.

        Args:
            packets: One 1-D packet of n elements for each of `members`.
            out: Receives all packets in order of rank, (size, n).
        """

    @abstractmethod
    def swap(
        self, peers: Mapping[int, int], outgoing: Mapping[int, torch.Tensor], incoming: Mapping[int, torch.Tensor]
    ) -> None:
        """Send a packet to a peer and receive one from it, as one grouped message.

        Args:
            peers: For each of `members` the rank to swap with; each is the other's peer.
            outgoing: The packet that each of `members` sends.
            incoming: Where each of `members` receives, of the size that its peer sends.
        """

    @abstractmethod
    def hand_out(self, source: int, packets: Mapping[int, torch.Tensor]) -> None:
        """Give every rank the packet of one rank.

        Args:
            source: The rank that has it.
            packets: For each of `members` the packet to send or to receive into.
        """

    @abstractmethod
    def exchange(self, thing: T) -> list[T]:
        """One small picklable object from every rank, in order of rank: for agreements, never in the hot loop."""

    @abstractmethod
    def close(self) -> None:
        """Give back what `world` took."""


class LocalComm(Comm):
    """All ranks in one process: for a single device, and for the simulation of several."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.members = tuple(range(size))

    def gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        for rank, packet in packets.items():
            out[rank].copy_(packet)

    def swap(
        self, peers: Mapping[int, int], outgoing: Mapping[int, torch.Tensor], incoming: Mapping[int, torch.Tensor]
    ) -> None:
        for rank, packet in outgoing.items():
            incoming[peers[rank]].copy_(packet)

    def hand_out(self, source: int, packets: Mapping[int, torch.Tensor]) -> None:
        for rank, packet in packets.items():
            if rank != source:
                packet.copy_(packets[source])

    def exchange(self, thing: T) -> list[T]:
        return [thing] * self.size

    def close(self) -> None:
        pass


class ProcessComm(Comm):
    """One rank a process, in a process group of its own so that the deadline is ours.

    Args:
        timeout: Deadline of every wait in seconds.
    """

    def __init__(self, timeout: float) -> None:
        super().__init__()
        self.timeout = timeout
        self.size = dist.get_world_size()
        self.members = (dist.get_rank(),)
        self._deadline = timedelta(seconds=timeout)
        self._group = dist.new_group(timeout=self._deadline)
        # Objects travel by way of the host: no device memory, and a dead rank is noticed at once.
        on_host = dist.get_backend(self._group) == "gloo"
        self._host_group = self._group if on_host else dist.new_group(timeout=self._deadline, backend="gloo")

    def gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        # torch 2.13 renamed it, and warns of the older name.
        all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        self._wait(lambda: all_gather(out.view(-1), packets[self.rank], group=self._group))

    def swap(
        self, peers: Mapping[int, int], outgoing: Mapping[int, torch.Tensor], incoming: Mapping[int, torch.Tensor]
    ) -> None:
        peer = peers[self.rank]
        operations = [
            dist.P2POp(dist.isend, outgoing[self.rank], peer, self._group),
            dist.P2POp(dist.irecv, incoming[self.rank], peer, self._group),
        ]
        self._wait(lambda: [work.wait(self._deadline) for work in dist.batch_isend_irecv(operations)])

    def hand_out(self, source: int, packets: Mapping[int, torch.Tensor]) -> None:
        self._wait(lambda: dist.broadcast(packets[self.rank], source, group=self._group))

    def exchange(self, thing: T) -> list[T]:
        things: list[Any] = [None] * self.size
        self._wait(lambda: dist.all_gather_object(things, thing, group=self._host_group))
        return things

    def close(self) -> None:
        if self._group is not None and dist.is_initialized() and not self.broken:
            if self._host_group is not self._group:
                dist.destroy_process_group(self._host_group)
            dist.destroy_process_group(self._group)
        self._group = self._host_group = None

    def _wait(self, send: Callable[[], object]) -> None:
        if self.broken:
            raise CommError("the process group broke in an earlier step; start the ranks again")
        try:
            send()
        except (RuntimeError, ValueError) as error:
            self.broken = True
            raise CommError(
                f"no answer from the other ranks within {self.timeout:g} s, or one died: {error}"
            ) from error
