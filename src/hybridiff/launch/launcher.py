"""The processes of an Engine: started together, heard together, ended together."""

from __future__ import annotations

import contextlib
import logging
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from .errors import verdict
from .processes import start_rank
from .protocol import (
    Answer,
    Cancel,
    Died,
    Failed,
    Generation,
    OnStep,
    RankSpec,
    Request,
    StepDone,
    Warned,
    receive,
    send,
)

logger = logging.getLogger("hybridiff")

GRACE = 5.0
"""Seconds that the other ranks have to say what they saw, once one is in trouble."""


class RankProcess:
    """One rank as the parent sees it.

    Args:
        spec: Sent to it as soon as it runs.
        log: File that takes its output.
        timeout: Deadline of a message in seconds: a rank that stops within one is ended.
    """

    def __init__(self, spec: RankSpec, log: Path, timeout: float) -> None:
        self.rank = spec.placement.rank
        self._log = log
        self._timeout, self._has_stopped = timeout, False
        self.connection, theirs = Pipe()
        with theirs, log.open("wb") as output:
            self.process = start_rank(spec.placement.device, theirs.fileno(), output, spec.startup_timeout)
        self.send(spec)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None

    def send(self, message: Any) -> None:
        """Send a message; a rank that is gone is noticed where its answer is read."""
        with contextlib.suppress(OSError), self._in_time():
            send(self.connection, message)

    def receive(self, request: int) -> Any:
        """What it says next: None if that is not about this request, `Died` where the rank has ended."""
        try:
            with self._in_time():
                reply = receive(self.connection)
        except (EOFError, OSError):
            return Died(self._exit(), self._log_tail())
        return reply.content if reply.id == request else None

    def end(self, deadline: float) -> None:
        """See it end until a time, and end it then."""
        try:
            self.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    @contextlib.contextmanager
    def _in_time(self) -> Iterator[None]:
        """End the rank where a message takes longer than the deadline: whoever sends or hears it waits without one."""
        watchdog = threading.Timer(self._timeout, self._stop)
        watchdog.daemon = True
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _stop(self) -> None:
        self._has_stopped = True
        self.process.kill()

    def _exit(self) -> str:
        if self._has_stopped:
            return f"stopped for {self._timeout:g} s within a message, and was ended,"
        try:
            code = self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code >= 0:
            return f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"

    def _log_tail(self, lines: int = 30) -> str:
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class RankGroup:
    """The ranks of an Engine, which answer one request at a time.

    The failure of a request leaves them usable, unless a rank died, was silent or lost touch with the others: a
    process group with a hole in it is of no use, so that another one must be started.

    Args:
        ranks: In order of rank.
        folder: Theirs; goes with them.
        timeout: Deadline: seconds without a sign of life from any rank.
    """

    def __init__(self, ranks: Sequence[RankProcess], folder: Path, timeout: float) -> None:
        self.ranks = ranks
        self._folder = folder
        self._timeout = timeout
        self._request = 0
        self._replies: dict[int, Answer] = {}
        self._progress = ""
        self._is_whole = True

    @classmethod
    def start(cls, spec: RankSpec) -> RankGroup:
        """Start all ranks as rank 0's spec says, and wait until they are ready.

        Raises:
            ValueError: all ranks refuse what they were given; UsageError if it is the user's mistake.
            EngineError: a rank failed, died or is silent. All were ended.
        """
        folder = Path(tempfile.mkdtemp(prefix="hybridiff-"))
        ranks: list[RankProcess] = []
        # The ranks' own deadline comes first: they know more about what they waited for.
        group = cls(ranks, folder, spec.config.timeout + 2.0)
        try:
            for rank in range(spec.placement.world):
                own, log = spec.of_rank(rank, str(folder / "meet")), folder / f"rank-{rank}.log"
                ranks.append(RankProcess(own, log, group._timeout))
            group._answers("starting", spec.startup_timeout)
        except BaseException:
            group.end()
            raise
        return group

    @property
    def is_usable(self) -> bool:
        """Whether a request can be expected to work."""
        return self._is_whole and all(rank.is_alive for rank in self.ranks)

    def generate(self, call: bytes, on_step: OnStep | None) -> Generation:
        """Let the ranks answer a request.

        Args:
            call: A packed `Call`.
            on_step: Is told of every denoising step, (done, total). What it raises cancels the request.

        Raises:
            ValueError: all ranks refuse the request alike; UsageError if it is the user's mistake.
            EngineError: a rank failed, died or is silent.
        """
        generation = self._ask(call, "generating", on_step)
        assert isinstance(generation, Generation)
        return generation

    def swap(self, loras: bytes) -> None:
        """Let the ranks have other LoRAs, given as a packed `Swap`; raises as `generate` does."""
        self._ask(loras, "loading LoRAs")

    def drain(self) -> None:
        """Wait until the ranks are done with a request that was cancelled."""
        if self.is_usable:
            self._listen(self._timeout, None)

    def end(self) -> None:
        """End every rank now; nothing of them is left afterwards."""
        for rank in self.ranks:
            rank.connection.close()  # at which ranks leave by themselves
        deadline = time.monotonic() + 1.0
        for rank in self.ranks:
            rank.end(deadline)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _ask(self, content: bytes, doing: str, on_step: OnStep | None = None) -> Any:
        """What rank 0 answers to a request."""
        self._request += 1
        self._replies, self._progress = {}, ""
        self._send(Request(self._request, content))
        return self._answers(doing, self._timeout, on_step)[0]

    def _send(self, message: Any) -> None:
        self._is_whole = False  # should Ctrl-C come between
        for rank in self.ranks:
            rank.send(message)
        self._is_whole = True

    def _answers(self, doing: str, silence: float, on_step: OnStep | None = None) -> list[Any]:
        """What the ranks answer, in order of rank; raises if they do not do as asked."""
        try:
            self._listen(silence, on_step)
        except BaseException:  # of on_step, or Ctrl-C
            if self._is_whole:
                self._send(Cancel(self._request))
            raise
        may_be_slow = not self._request  # to load a model takes ranks unlike time
        error = verdict(self._replies, len(self.ranks), silence, doing + self._progress, may_be_slow)
        if error is not None:
            raise error
        return [self._replies[rank] for rank in range(len(self.ranks))]

    def _listen(self, silence: float, on_step: OnStep | None) -> None:
        """Gather the replies to the current request, until all are there or there is too long a silence."""
        deadline = time.monotonic() + silence
        while len(self._replies) < len(self.ranks):
            waiting: dict[Any, RankProcess] = {
                rank.connection: rank for rank in self.ranks if rank.rank not in self._replies
            }
            spoken = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not spoken:
                break
            for connection in spoken:
                self._hear(waiting[connection], on_step)
            in_trouble = any(isinstance(reply, (Died, Failed)) for reply in self._replies.values())
            extended = time.monotonic() + (min(GRACE, silence) if in_trouble else silence)
            deadline = min(deadline, extended) if in_trouble else extended
        is_lost = any(isinstance(reply, (Died, Failed)) and reply.is_lost for reply in self._replies.values())
        self._is_whole = len(self._replies) == len(self.ranks) and not is_lost

    def _hear(self, rank: RankProcess, on_step: OnStep | None) -> None:
        self._is_whole = False  # should Ctrl-C cut a message in two
        message = rank.receive(self._request)
        if isinstance(message, Answer):
            self._replies[rank.rank] = message
        self._is_whole = True
        if isinstance(message, Warned):
            logger.warning(message.text)
        elif isinstance(message, StepDone):
            self._progress = f" after step {message.done} of {message.total}"
            if on_step is not None:
                on_step(message.done, message.total)
