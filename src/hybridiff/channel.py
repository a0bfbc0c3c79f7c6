"""The messages of one run: predictions, and in their tail how each rank fares.

Every rank issues the same messages in the same order, whatever happens to it: a rank that fails, or leaves the
denoising loop early, still takes part in the message that the others wait for and says so in its tail. So no rank
waits for one that is gone, and every rank raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import IntEnum

import torch

from .comm import Comm, CommError, RankError


class Status(IntEnum):
    """How a rank fares, as it stands in the tail of its packets."""

    WORKING = 0
    INTERRUPTED = 1
    FINISHED = 2
    FAILED = 3


class Channel:
    """What the ranks of one run tell each other.

    Args:
        comm: The ranks.
        position: Says where this rank is, for errors: "warm-up, step 7".

    Attributes:
        status: Goes out with the next packet.
        interrupted: True once some rank asked for the generation to stop.
    """

    def __init__(self, comm: Comm, position: Callable[[], str]) -> None:
        self.comm = comm
        self.status = Status.WORKING
        self.interrupted = False
        self._position = position
        self._packets: dict[int, torch.Tensor] = {}
        self._gathered: torch.Tensor | None = None

    @property
    def is_open(self) -> bool:
        """Whether packets have a size yet; until then ranks agree by small objects."""
        return self._gathered is not None

    def agree(self, thing: object, what: str) -> list[object]:
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

    def gather(self, pieces: Mapping[int, torch.Tensor], purpose: str = "prediction") -> torch.Tensor:
        """Hand every rank the pieces of all ranks.

        Args:
            pieces: What each of this process's ranks has to say, of any shape and at most the packet's size; a rank
                without an entry has nothing.
            purpose: Name under which the bytes are counted.

        Returns:
            (size, elements); a view that the next gather overwrites.
        """
        assert self._gathered is not None
        for rank, packet in self._packets.items():
            if rank in pieces:
                packet[: pieces[rank].numel()].copy_(pieces[rank].reshape(-1))
            packet[-1] = float(self.status)
        gathered = self._gathered
        self._guard(lambda: self.comm.gather(self._packets, gathered, purpose), f"the {purpose}")
        return gathered[:, :-1]

    def beat(self) -> None:
        """Tell each other how the ranks fare in a step that has nothing to send.

        Raises:
            RankError: a rank failed, or left the loop while this one goes on.
        """
        self.gather({}, "control")
        self.settle()

    def settle(self, scalar: torch.Tensor | None = None) -> float | None:
        """Read the tails of the last gather, and a scalar with them: the one host synchronisation of a step.

        Raises:
            RankError: a rank failed, or left the loop while this one goes on.
        """
        assert self._gathered is not None
        tails = self._gathered[:, -1].float()
        values = (tails if scalar is None else torch.cat([tails, scalar.reshape(1)])).tolist()
        statuses = [Status(int(value)) for value in values[: self.comm.size]]
        if any(status >= Status.FINISHED for status in statuses):
            self._raise_together(None)
        self.interrupted = self.interrupted or Status.INTERRUPTED in statuses
        return None if scalar is None else values[-1]

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
        """Take part in the message that the others wait for; how all ranks fare."""
        self.status = status
        if not self.is_open:
            replies = self._guard(lambda: self.comm.exchange((status, None)), "the end of the run")
            return [reply for reply, _ in replies]
        return [Status(int(value)) for value in self._tails()]

    def _tails(self) -> list[float]:
        self.gather({}, "control")
        assert self._gathered is not None
        tails: list[float] = self._gathered[:, -1].float().tolist()
        return tails

    def _raise_together(self, error: BaseException | None) -> None:
        """Every rank says what happened to it, and every rank raises the same story."""
        story = (self.status, self._position(), None if error is None else f"{type(error).__name__}: {error}")
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

    def _guard(self, send: Callable[[], object], what: str):  # type: ignore[no-untyped-def]
        try:
            return send()
        except CommError as error:
            raise RankError(f"rank {self.comm.rank} in {self._position()}, waiting for {what}: {error}") from error
