"""How ranks talk: a process group with a deadline, or the same ranks played in one process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
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
        sent: Bytes put on the wire so far by all ranks together, by purpose.
        broken: True once a message failed; no further message is tried then.
    """

    size: int
    members: tuple[int, ...]

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
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

    def gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor, purpose: str) -> None:
        """Hand every rank the packets of all ranks.

        Args:
            packets: One 1-D packet of n elements for each of `members`.
            out: Receives all packets in order of rank, (size, n).
            purpose: Name under which the bytes are counted.
        """
        self.sent[purpose] += self.size * (self.size - 1) * out[0].nbytes
        self._gather(packets, out)

    @abstractmethod
    def _gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor) -> None: ...

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

    def _gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        for rank, packet in packets.items():
            out[rank].copy_(packet)

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
        self._group = dist.new_group(timeout=timedelta(seconds=timeout))

    def _gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        self._wait(lambda: dist.all_gather_into_tensor(out.view(-1), packets[self.rank], group=self._group))

    def exchange(self, thing: T) -> list[T]:
        things: list[Any] = [None] * self.size
        self._wait(lambda: dist.all_gather_object(things, thing, group=self._group))
        return things

    def close(self) -> None:
        if self._group is not None and dist.is_initialized() and not self.broken:
            dist.destroy_process_group(self._group)
        self._group = None

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
