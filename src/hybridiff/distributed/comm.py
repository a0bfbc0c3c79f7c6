"""How ranks talk, as strategies see it; and the same ranks played in one process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")

Buffers = Mapping[int, torch.Tensor]
"""One buffer for each local rank."""

Heard = Callable[[], list[torch.Tensor]]
"""Waits for tensors of all ranks, in order."""

Tell = Callable[[Any], list[Any]]
"""Hands all ranks one object of each (`Comm.all_gather_object`)."""


class Comm(ABC):
    """A group of ranks.

    A strategy does the work of every rank in `local_ranks` and hands over one buffer for each, so that the same code
    runs one rank per process (`ProcessComm`) and all of them in one (`LocalComm`).

    Attributes:
        size: Number of ranks.
        local_ranks: Ranks that this process plays.
        timeout: Deadline of every wait in seconds.
        broken: True once a message failed; no further message is tried then.
    """

    size: int
    local_ranks: tuple[int, ...]
    timeout: float

    def __init__(self) -> None:
        self.broken = False

    @property
    def rank(self) -> int:
        """The first rank this process plays."""
        return self.local_ranks[0]

    @property
    def is_leader(self) -> bool:
        """Whether this process plays rank 0, which writes, shows progress and decodes."""
        return 0 in self.local_ranks

    @abstractmethod
    def all_gather(self, buffers: Buffers, out: torch.Tensor) -> None:
        """Hand every rank the buffers of all ranks.

        Args:
            buffers: 1-D, of n elements each.
            out: Receives all buffers in order of rank, (size, n).
        """

    def start_all_gather(self, buffers: Buffers, out: torch.Tensor) -> Callable[[], None]:
        """The same in the background, where that can be; neither buffers nor `out` may be touched before its end.

        Returns:
            Waits for the end.
        """
        self.all_gather(buffers, out)
        return lambda: None

    def start_gather(self, mine: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        """Begin to hear tensors of all ranks, where a process plays one; no other message may come in between.

        Args:
            mine: This rank's.
            shapes: Of those of all ranks, in order.

        Returns:
            Waits for all of them, in order of rank; they last until this rank speaks again.
        """
        return self.gather_in_background(mine, shapes)

    def gather_in_background(self, mine: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        """The same whatever comes in between, and they last; this rank's must not be changed before the end."""
        padded = _padded(mine, max(shape.numel() for shape in shapes))
        out = mine.new_empty(self.size, len(padded))
        wait = self.start_all_gather({self.rank: padded}, out)

        def hear() -> list[torch.Tensor]:
            wait()
            return [row[: shape.numel()].view(shape) for row, shape in zip(out, shapes, strict=True)]

        return hear

    @abstractmethod
    def all_to_all(self, outgoing: Buffers, incoming: Buffers) -> None:
        """Hand every rank its own piece of the buffer of each.

        Args:
            outgoing: 1-D, as many pieces of one size as there are ranks, in the order of those they are for.
            incoming: Receive as many pieces, in order of the ranks they are from.
        """

    @abstractmethod
    def sendrecv(self, outgoing: Mapping[int, Buffers], incoming: Mapping[int, Buffers]) -> None:
        """Send buffers to other ranks and receive some from them, as one grouped message.

        Args:
            outgoing: What each local rank sends, by the rank that is to have it.
            incoming: Where each local rank receives, by the rank that sends it, of the size that it sends.
        """

    @abstractmethod
    def broadcast(self, buffers: Mapping[int, Buffers]) -> None:
        """Give every rank the buffers of some ranks.

        Args:
            buffers: By the rank that has it, to send from or to receive into; in the same order on every rank.
        """

    @abstractmethod
    def all_gather_object(self, thing: T) -> list[T]:
        """One small picklable object from every rank, in order of rank: for agreements, never in the hot loop."""

    @abstractmethod
    def split(self, groups: Sequence[Sequence[int]]) -> list[Comm | None]:
        """A group of its own for each list of ranks, numbered anew from 0 in rising order; all ranks call it alike.

        Returns:
            One per list; None where this process plays none of its ranks.
        """

    def fail(self) -> None:
        """Give the group up, as a message failed; nothing more is sent."""
        self.broken = True

    @abstractmethod
    def close(self, aborts: bool = False) -> None:
        """Give back what was taken.

        Args:
            aborts: Messages may wait for a lost rank; nobody waits for them any more.
        """


def _padded(tensor: torch.Tensor, elements: int) -> torch.Tensor:
    """A tensor as a row of so many elements, the last ones of which are whatever is in memory."""
    if tensor.numel() == elements:
        return tensor.reshape(-1)
    padded = tensor.new_empty(elements)
    padded[: tensor.numel()].view(tensor.shape).copy_(tensor)
    return padded


class LocalComm(Comm):
    """All ranks in one process: for a single device, and for the simulation of several."""

    timeout = float("inf")

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.local_ranks = tuple(range(size))

    def all_gather(self, buffers: Buffers, out: torch.Tensor) -> None:
        for rank, buffer in buffers.items():
            out[rank].copy_(buffer)

    def all_to_all(self, outgoing: Buffers, incoming: Buffers) -> None:
        for rank, buffer in incoming.items():
            torch.cat([outgoing[other].chunk(self.size)[rank] for other in self.local_ranks], out=buffer)

    def sendrecv(self, outgoing: Mapping[int, Buffers], incoming: Mapping[int, Buffers]) -> None:
        for rank, buffers in outgoing.items():
            for other, buffer in buffers.items():
                incoming[other][rank].copy_(buffer)

    def broadcast(self, buffers: Mapping[int, Buffers]) -> None:
        for source, copies in buffers.items():
            for rank, buffer in copies.items():
                if rank != source:
                    buffer.copy_(copies[source])

    def all_gather_object(self, thing: T) -> list[T]:
        return [thing] * self.size

    def split(self, groups: Sequence[Sequence[int]]) -> list[Comm | None]:
        return [LocalComm(len(group)) for group in groups]

    def close(self, aborts: bool = False) -> None:
        pass
