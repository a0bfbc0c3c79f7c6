"""The messages of one run, and the status protocol that rides on them.

Every rank issues the same messages in the same order, whatever happens to it: a rank that fails, or leaves the
denoising loop early, still takes part in the messages that the others wait for and says so in their status slots. So no
rank waits for one that is gone, and every rank raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import CommError, RankError
from ..report.timeline import Timeline
from ..schedule.kinds import StepKind
from .comm import Comm
from .messages import Messages
from .readback import Readback
from .reading import Reading
from .status import SLOT, Slot, SlotTable, Status, digest

T = TypeVar("T")


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
        self.ahead: Callable[[], tuple[int, StepKind]] = self._next_full
        self.first = 0  # step of the run from which steps are counted
        self.step, self.kind, self.is_guided = -1, StepKind.FULL, True
        self._timeline = timeline
        self._slots: SlotTable | None = None
        self._sample: torch.Tensor | None = None  # its digest
        self._unfinished: Messages | None = None  # of the step that runs
        self._unread: Reading | None = None  # of the latest message

    @property
    def is_open(self) -> bool:
        """Whether buffers have a size yet; until then ranks agree by small objects."""
        return self._slots is not None

    def open(self, steps: int, like: torch.Tensor, messages: dict[StepKind, Messages]) -> None:
        """Begin to talk by tensors like this one, in a run of so many steps."""
        self._slots = SlotTable(self.first + steps, like)
        self.messages |= messages
        self._unfinished = self.messages.get(self.kind)

    def close(self, step: int) -> None:
        """Hear all ranks once more; from there on, as at the start, they agree by small objects until `open`.

        Args:
            step: The step from which a new strategy counts its own.

        Raises:
            RankError: see `heed_unread`.
        """
        self.begin_step(step - self.first, StepKind.FULL)
        self._close()
        self.first, self.step = step, -1

    def meet(self, what: str, thing: T) -> list[T]:
        """What all ranks say before the first step or after the last one; from there on they agree by small objects.

        Args:
            what: What they are about to do.
            thing: What this rank has to say to it.

        Raises:
            RankError: a rank failed or finished before it came this far; or see `heed_unread`.
        """
        if self.is_open:
            self.heed_unread()
            self.begin_step(*self.ahead())
            self._close()
        return self.consensus(thing, what)

    def begin_step(self, step: int, kind: StepKind, is_guided: bool = True) -> None:
        """Say which step now begins, of which kind, and whether with guidance."""
        self.step, self.kind, self.is_guided = step, kind, is_guided
        self._unfinished = self.messages.get(kind)
        if self._unfinished is not None:
            self._unfinished.begin()

    def end_messages(self) -> None:
        """The last message of the step is about to be sent."""
        self._unfinished = None

    def send(self, send: Callable[[], None], what: str) -> None:
        """Send a message; names this rank, its place and what it waited for where that fails."""
        with self._timeline.span(self.comm.rank, f"wait: {what}", "message"):
            self._guard(send, what)

    def write_slot(self, buffer: torch.Tensor) -> None:
        """Put this rank's status, and what its step is, at the end of a buffer."""
        assert self._slots is not None
        self._slots.write(buffer, Slot(self.status, self.kind, self.first + self.step, self.is_guided), self._sample)

    def show(self, sample: torch.Tensor) -> None:
        """Take in what the denoiser is given in this step, which has to be the same on every rank."""
        if len(self.comm.local_ranks) < self.comm.size:  # ranks that are played have one sample
            self._sample = digest(sample)

    def count(self, purpose: str, elements: int, element_size: int, copies: int) -> None:
        """Count a message, without its status slot and with it."""
        self.sent[purpose] += copies * elements * element_size
        self.sent["control"] += copies * SLOT * element_size

    def read_status(
        self, slots: dict[int, torch.Tensor], finite: torch.Tensor, scalars: torch.Tensor | None = None
    ) -> Reading:
        """Begin to read the slots of the ranks in a message; heeded when asked for, or else before the next message.

        Args:
            slots: The slot of each rank that was heard.
            finite: Whether each rank sent finite numbers only, (size,).
            scalars: Numbers to be read with them, 1-D float32.
        """
        numbers = finite.new_empty(0, dtype=torch.float32) if scalars is None else scalars
        self._unread = Reading(slots, finite, numbers, self.where(), self._wait, self._heed)
        return self._unread

    def heed_unread(self) -> None:
        """Heed what the latest message said, where nobody has asked yet.

        Raises:
            RankError: a rank failed, left the loop while this one goes on, or sent NaN; or steps differ.
        """
        if self._unread is not None:
            self._unread.values()

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

    def follow(self) -> None:
        """Leave the run because another rank left it in the middle of a network, where no status is told.

        Raises:
            RankError: what happened to that one.
        """
        self._leave(Status.FAILED)
        self._raise_together(None)

    def _close(self) -> None:
        messages = self.messages[self.kind]
        messages.take_part()
        messages.read_status().values()
        self._slots, self.messages, self.ahead = None, {}, self._next_full

    def _next_full(self) -> tuple[int, StepKind]:
        return self.step + 1, StepKind.FULL

    def _heed(self, reading: Reading) -> None:
        """Act on what a message said; see `heed_unread`."""
        self._unread = None
        if any(status.is_leaving for status in reading.statuses()):
            self._raise_together(None)
        problem = reading.problem()
        if problem is not None:
            raise RankError(problem)
        self.interrupted = self.interrupted or Status.INTERRUPTED in reading.statuses()

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
            if status is Status.FAILED and cause is not None
        ]
        left = [
            f"rank {rank} left the denoising loop in {where}" if status is Status.FINISHED else f"rank {rank} goes on"
            for rank, (status, where, _) in enumerate(stories)
        ]
        raise RankError("; ".join(failed or left))

    def _wait(self, readback: Readback) -> list[float]:
        try:
            return self._guard(lambda: readback.wait(self.comm.timeout), "hear how the ranks fare")
        except CommError:
            self.comm.fail()
            raise

    def _guard(self, send: Callable[[], T], what: str) -> T:
        try:
            return send()
        except CommError as error:
            raise CommError(f"rank {self.comm.rank} in {self.where()}, waiting to {what}: {error}") from error
