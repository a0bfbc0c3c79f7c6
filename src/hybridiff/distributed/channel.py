"""The messages of one run, and the status protocol that rides on them.

Every rank issues the same messages in the same order, whatever happens to it: a rank that fails, or leaves the
denoising loop early, still takes part in the messages that the others wait for and says so in their status slots. So no
rank waits for one that is gone, and every rank raises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import CommError, RankError
from ..report.timeline import Timeline
from ..schedule.kinds import StepKind
from .comm import Comm
from .readback import Readback
from .status import SLOT, Slot, SlotTable, Status

T = TypeVar("T")


class Messages(ABC):
    """The messages of a step, and how a rank that leaves takes part in them."""

    @abstractmethod
    def begin(self) -> None:
        """A step begins that is made of these messages."""

    @abstractmethod
    def take_part(self) -> bool:
        """Send what is left of the step's messages, with nothing in them but the status; whether that was heard."""

    @abstractmethod
    def read_status(self, scalars: torch.Tensor | None = None) -> Reading:
        """Begin to read the step's status slots, and scalars (1-D) with them."""


class Channel:
    """What the ranks of one run tell each other.

    Args:
        comm: The ranks.
        where: Says where this rank is, for errors: "warm-up, step 7".
        timeline: Where waits are recorded.

    Attributes:
        status: Goes out with the next message.
        interrupted: True once some rank asked for the generation to stop.
        sent: Bytes put on the wire so far by all ranks together, by purpose; status slots count as "control".
        messages: What steps of each kind are made of; kinds that send nothing have no entry.
        ahead: The next step with messages, and its kind; a rank that leaves takes part in them.
    """

    def __init__(self, comm: Comm, where: Callable[[], str], timeline: Timeline) -> None:
        self.comm = comm
        self.where = where
        self.status = Status.WORKING
        self.interrupted = False
        self.sent: Counter[str] = Counter()
        self.messages: dict[StepKind, Messages] = {}
        self.ahead: Callable[[], tuple[int, StepKind]] = lambda: (self.step + 1, StepKind.FULL)
        self.step, self.kind = -1, StepKind.FULL
        self._timeline = timeline
        self._slots: SlotTable | None = None
        self._unfinished: Messages | None = None  # of the step that runs
        self._unread: Reading | None = None  # of the latest message

    @property
    def is_open(self) -> bool:
        """Whether buffers have a size yet; until then ranks agree by small objects."""
        return self._slots is not None

    def open(self, steps: int, like: torch.Tensor, messages: dict[StepKind, Messages]) -> None:
        """Begin to talk by tensors like this one, in a run of so many steps."""
        self._slots = SlotTable(steps, like)
        self.messages |= messages
        self._unfinished = self.messages.get(self.kind)

    def begin_step(self, step: int, kind: StepKind) -> None:
        """Say which step now begins, of which kind."""
        self.step, self.kind = step, kind
        self._unfinished = self.messages.get(kind)
        if self._unfinished is not None:
            self._unfinished.begin()

    def end_messages(self) -> None:
        """All messages of the step are sent."""
        self._unfinished = None

    def send(self, send: Callable[[], None], what: str) -> None:
        """Send a message; names this rank, its place and what it waited for where that fails."""
        with self._timeline.span(self.comm.rank, f"wait: {what}", "message"):
            self._guard(send, what)

    def write_slot(self, buffer: torch.Tensor) -> None:
        """Put this rank's status, and the kind and number of its step, at the end of a buffer."""
        assert self._slots is not None
        self._slots.write(buffer, self.status, self.kind, self.step)

    def count(self, purpose: str, elements: int, element_size: int, copies: int) -> None:
        """Count a message, without its status slot and with it."""
        self.sent[purpose] += copies * elements * element_size
        self.sent["control"] += copies * SLOT * element_size

    def read_status(
        self, slots: dict[int, torch.Tensor], finite: torch.Tensor | None = None, scalars: torch.Tensor | None = None
    ) -> Reading:
        """Begin to read the slots of the ranks in a message; heeded when asked for, or else before the next message.

        Args:
            slots: The slot of each rank that was heard.
            finite: Whether each rank sent finite numbers only, (size,).
            scalars: Numbers to be read with them, 1-D float32.
        """
        self._unread = Reading(self, slots, finite, scalars)
        return self._unread

    def heed_unread(self) -> None:
        """Heed what the latest message said, where nobody has asked yet.

        Raises:
            RankError: a rank failed, left the loop while this one goes on, or sent NaN; or steps differ.
        """
        if self._unread is not None:
            self._unread.values()

    def heed(self, reading: Reading) -> None:
        """Act on what a message said; see `heed_unread`."""
        self._unread = None
        if any(status.is_leaving for status in reading.statuses()):
            self._raise_together(None)
        problem = reading.problem()
        if problem is not None:
            raise RankError(problem)
        self.interrupted = self.interrupted or Status.INTERRUPTED in reading.statuses()

    def consensus(self, thing: T, what: str) -> list[T]:
        """Exchange an object with all ranks, all of which must still be in this run.

        Raises:
            RankError: a rank failed or finished before it came this far; names it.
        """
        self.heed_unread()
        replies = self._guard(lambda: self.comm.all_gather_object((self.status, thing)), what)
        if any(status.is_leaving for status, _ in replies):
            self._raise_together(None)
        return [reply for _, reply in replies]

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
            replies = self._guard(lambda: self.comm.all_gather_object((status, None)), "the end of the run")
            return [reply for reply, _ in replies]
        unread, self._unread = self._unread, None
        if unread is not None:
            if any(other.is_leaving for other in unread.statuses()):
                return unread.statuses()  # nobody sends anything more
            problem = unread.problem()
            if problem is not None:
                raise RankError(problem)
        messages = self._unfinished
        if messages is None or not messages.take_part():
            self.begin_step(*self.ahead())
            messages = self.messages[self.kind]
            messages.take_part()
        return messages.read_status().statuses()

    def _raise_together(self, error: BaseException | None) -> None:
        """Every rank says what happened to it, and every rank raises the same story."""
        story = (self.status, self.where(), None if error is None else f"{type(error).__name__}: {error}")
        stories = self._guard(lambda: self.comm.all_gather_object(story), "the error of another rank")
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

    def _guard(self, send: Callable[[], T], what: str) -> T:
        try:
            return send()
        except CommError as error:
            raise RankError(f"rank {self.comm.rank} in {self.where()}, waiting to {what}: {error}") from error


class Reading:
    """The status slots of one message, and a few scalars with them, on their way to the host.

    Args:
        channel: Whose message it was.
        slots: The slot of each rank that was heard.
        finite: Whether each rank sent finite numbers only, (size,); None where that was not looked at.
        scalars: Numbers to be read with them, 1-D.
    """

    def __init__(
        self,
        channel: Channel,
        slots: dict[int, torch.Tensor],
        finite: torch.Tensor | None = None,
        scalars: torch.Tensor | None = None,
    ) -> None:
        self._channel = channel
        self._ranks = list(slots)
        self._flags = 0 if finite is None else len(finite)
        parts = [*(slot.float() for slot in slots.values()), *(() if finite is None else (finite.float(),))]
        self._readback: Readback | None = Readback(torch.cat([*parts, *(() if scalars is None else (scalars,))]))
        self._values: list[float] = []
        self._where = channel.where()
        self._heeded = False

    def values(self) -> list[float]:
        """The scalars; waits for the device, and heeds what the ranks say of themselves.

        Raises:
            RankError: see `Channel.heed_unread`.
        """
        self._wait()
        if not self._heeded:
            self._heeded = True
            self._channel.heed(self)
        return self._values[len(self._ranks) * SLOT + self._flags :]

    def statuses(self) -> list[Status]:
        """How the ranks that were heard fare."""
        return [slot.status for slot in self._slots()]

    def problem(self) -> str | None:
        """Why the run cannot go on though no rank failed, in one sentence; all ranks read the same."""
        slots = self._slots()
        if len({(slot.step, slot.kind) for slot in slots}) > 1:
            ranks = zip(self._ranks, slots, strict=True)
            places = [f"rank {rank} at step {slot.step} ({slot.kind.value})" for rank, slot in ranks]
            return f"ranks are at different steps: {', '.join(places)}; make the same call on every rank"
        flags = self._values[len(self._ranks) * SLOT :][: self._flags]
        if not all(flags):
            return (
                f"rank {flags.index(0.0)} predicted NaN or infinity in {self._where}; if the network runs in float16, "
                "try bfloat16 or float32"
            )
        return None

    def _slots(self) -> list[Slot]:
        self._wait()
        return [Slot.decode(self._values[i * SLOT : (i + 1) * SLOT]) for i in range(len(self._ranks))]

    def _wait(self) -> None:
        if self._readback is None:
            return
        channel, readback = self._channel, self._readback
        try:
            self._values = channel._guard(lambda: readback.wait(channel.comm.timeout), "hear how the ranks fare")
        except RankError:
            channel.comm.fail()
            raise
        self._readback = None
