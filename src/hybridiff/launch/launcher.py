"""The processes of an Engine: started together, heard together, ended together."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .errors import verdict
from .protocol import Died, Failed, RankSpec, StepDone, Warned, receive, send

logger = logging.getLogger("hybridiff")

GRACE = 3.0
"""Seconds that the other ranks have to say what they saw, once one is in trouble."""

STOP_TIME = 5.0
"""Seconds that ranks have to leave by themselves before they are ended."""

_TORCHRUN_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RankProcess:
    """One rank as the parent sees it.

    Args:
        spec: Sent to it as soon as it runs.
        folder: Where its log goes.
    """

    def __init__(self, spec: RankSpec, folder: Path) -> None:
        self.rank = spec.rank
        self.log = folder / f"rank-{spec.rank}.log"
        self.connection, theirs = Pipe()
        with theirs, self.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches the parent alone, which then ends the ranks in order.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "hybridiff.launch.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(spec.device),
                start_new_session=True,
            )
        self.send(spec)

    def send(self, message: Any) -> None:
        """Send a message; a rank that is gone is noticed where its answer is read."""
        with contextlib.suppress(OSError):
            send(self.connection, message)

    def receive(self) -> Any:
        """Its next message; `Died` where it has ended."""
        try:
            return receive(self.connection)
        except (EOFError, OSError):
            return Died(self._exit(), self._log_tail())

    def _exit(self) -> str:
        try:
            code = self.process.wait(STOP_TIME)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code >= 0:
            return f"ended with exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return f"was killed by {signal.Signals(-code).name}{hint}"

    def _log_tail(self, lines: int = 30) -> str:
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""


class RankGroup:
    """All ranks of an Engine.

    Args:
        specs: One for each rank, in order.
    """

    def __init__(self, specs: Sequence[RankSpec]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="hybridiff-"))
        self._progress = ""
        self.ranks: list[RankProcess] = []
        try:
            for spec in specs:
                self.ranks.append(RankProcess(replace(spec, rendezvous=str(self._folder / "meet")), self._folder))
        except BaseException:
            self.end()
            raise

    def send(self, message: Any) -> None:
        """Send a message to every rank."""
        self._progress = ""
        for rank in self.ranks:
            rank.send(message)

    def replies(self, silence: float, on_step: Callable[[int, int], None] | None, doing: str) -> list[Any]:
        """Wait for the reply of every rank.

        Args:
            silence: Deadline: seconds without a sign of life from any rank.
            on_step: Is told of every denoising step, (done, total).
            doing: What the ranks do, for errors.

        Raises:
            ValueError: all ranks refuse the request for the same reason; they are well.
            EngineError: a rank failed, died or is silent.
        """
        replies: dict[int, Any] = {}
        deadline = time.monotonic() + silence
        while len(replies) < len(self.ranks):
            waiting = {rank.connection: rank for rank in self.ranks if rank.rank not in replies}
            spoken = wait(list(waiting), max(0.0, deadline - time.monotonic()))
            if not spoken:
                break
            for connection in spoken:
                assert isinstance(connection, Connection)
                self._hear(waiting[connection], replies, on_step)
            in_trouble = any(isinstance(reply, (Died, Failed)) for reply in replies.values())
            extended = time.monotonic() + (min(GRACE, silence) if in_trouble else silence)
            deadline = min(deadline, extended) if in_trouble else extended
        error = verdict(replies, len(self.ranks), silence, doing + self._progress)
        if error is not None:
            raise error
        return [replies[rank] for rank in range(len(self.ranks))]

    def stop(self) -> None:
        """Let idle ranks leave by themselves, then end what is left."""
        for rank in self.ranks:
            rank.send(None)
        self._wait_for_exit(STOP_TIME)
        self.end()

    def end(self) -> None:
        """End every rank now: ask by SIGTERM, then SIGKILL; nothing of them is left afterwards."""
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.process.terminate()
        self._wait_for_exit(1.0)
        for rank in self.ranks:
            if rank.process.poll() is None:
                rank.process.kill()
            rank.process.wait()
            rank.connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _hear(self, rank: RankProcess, replies: dict[int, Any], on_step: Callable[[int, int], None] | None) -> None:
        message = rank.receive()
        if isinstance(message, StepDone):
            self._progress = f" after step {message.done} of {message.total}"
            if on_step is not None:
                on_step(message.done, message.total)
        elif isinstance(message, Warned):
            logger.warning(message.text)
        else:
            replies[rank.rank] = message

    def _wait_for_exit(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for rank in self.ranks:
            try:
                rank.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return


def _environment(device: str) -> dict[str, str]:
    """What a rank inherits: not torchrun's variables, and on the CPU one thread and the loopback network."""
    environment = {name: value for name, value in os.environ.items() if name not in _TORCHRUN_VARIABLES}
    package_root = str(Path(__file__).parents[2])  # found by ranks however the parent found it
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, environment.get("PYTHONPATH")]))
    environment["TOKENIZERS_PARALLELISM"] = "false"
    if device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        if loopback is not None:
            environment.setdefault("GLOO_SOCKET_IFNAME", loopback)
    return environment
