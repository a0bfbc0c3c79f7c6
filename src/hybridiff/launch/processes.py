"""Processes of ranks: forked by a server that has imported everything, or started from scratch."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from ..distributed.placement import Placement, is_under_torchrun

logger = logging.getLogger("hybridiff")

GRACE = 2.0
"""Seconds for a server that answers no more to have ended, and for one that answers to say that a rank has."""


class Forked:
    """The process of a rank that a server forked for this one; its methods are those of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int, told: Connection) -> None:
        self.pid = pid
        self._server = server  # which lives as long as its ranks
        self._told = told
        self._parent = os.getpid()
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self, timeout: float | None = 0.0) -> int | None:
        """Its exit code, negative where a signal ended it; None where it runs on for so many seconds."""
        if os.getpid() != self._parent:
            return 0  # a fork of the parent has no say, as with a Popen
        if self._code is None and self._told.poll(timeout):
            with self._lock:
                self._code = self._hear() if self._code is None else self._code
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; raises `subprocess.TimeoutExpired` where it runs on."""
        code = self.poll(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout or 0.0)
        return code

    def kill(self) -> None:
        """End it now; a server that then says nothing of it is stuck, and forks no further ranks."""
        if self.poll() is None:
            self._kill()
            if self.poll(GRACE) is None:
                self._server.is_stuck, self._code = True, -signal.SIGKILL

    def _hear(self) -> int:
        try:
            return int(self._told.recv())
        except (EOFError, OSError):  # the server is gone: nobody would learn how this process ends
            self._kill()
            return -signal.SIGKILL

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class _EndedIdle(OSError):
    """The server had nothing to do for long, and ended just as it was wanted."""


class ForkServer:
    """A process that forks ranks (see `forkserver`); it ends idle, with the last reference to it or this process.

    Attributes:
        is_stuck: It runs, and does nothing.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self.is_stuck = False
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        with theirs:
            self._process = _start("forkserver", theirs.fileno(), self._log, environment)
        weakref.finalize(self, _end, self._process, self._requests, self._log)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs, and does as it is asked."""
        return not self.is_stuck and self._process.poll() is None

    def fork(self, connection: int, log: IO[bytes], timeout: float) -> Forked:
        """Fork a rank.

        Args:
            connection: Descriptor of its connection to this process.
            log: Takes its output.
            timeout: Seconds for the server to have imported everything.

        Raises:
            OSError: the server is gone, or silent; `_EndedIdle` where another one would do it.
        """
        told, theirs = Pipe(duplex=False)
        try:
            with theirs:
                socket.send_fds(self._requests, [b" "], [connection, log.fileno(), theirs.fileno()])
            if told.poll(timeout):
                return Forked(self, told.recv(), told)
        except (EOFError, ConnectionError):
            raise self._why_gone() from None
        self._process.kill()  # lest it forks this rank later
        raise OSError(f"no sign of life for {timeout:g} s")

    def _why_gone(self) -> OSError:
        with suppress(subprocess.TimeoutExpired):
            if self._process.wait(GRACE) == 0:
                return _EndedIdle("it ended as it had been idle for long")
        self._log.seek(0)
        return OSError(self._log.read().decode(errors="replace").strip().rpartition("\n")[2])


class _ForkServers:
    """The server of this process; once it cannot be had, it is not tried again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # several engines may be made at once
        self._server: ForkServer | None = None
        self._surroundings: Any = None
        self.is_given_up = sys.platform != "linux"

    def fork(self, connection: int, log: IO[bytes], timeout: float) -> Forked | None:
        """See `ForkServer.fork`; None where there is no server."""
        if self.is_given_up:
            return None
        try:
            with suppress(_EndedIdle):
                return self.prepare().fork(connection, log, timeout)
            return self.prepare().fork(connection, log, timeout)
        except OSError as error:
            self.is_given_up = True
            self.release()
            logger.warning("no fork server (%s): each rank imports by itself, which takes seconds longer", error)
            return None

    def prepare(self) -> ForkServer:
        """The server, which may still be at its imports."""
        # Libraries read their surroundings at import: ranks for others need a server that was started in those.
        environment = _environment("cpu")
        surroundings = os.getpid(), os.getcwd(), os.sched_getaffinity(0), environment
        with self._lock:
            if self._server is None or self._surroundings != surroundings or not self._server.is_alive:
                self._server, self._surroundings = ForkServer(environment), surroundings
            return self._server

    def release(self) -> None:
        """End the server, unless ranks of it live."""
        self._server = None


_fork_servers = _ForkServers()


def find_placement(devices: int | None, device: str, simulate: bool) -> Placement:
    """See `Placement.resolve`. Should that import torch to count GPUs, a fork server is at its imports meanwhile."""
    is_slow = device == "auto" and "torch" not in sys.modules and not is_under_torchrun()
    if is_slow and not _fork_servers.is_given_up:
        with suppress(OSError):
            _fork_servers.prepare()
    placement = Placement.resolve(devices, device, simulate)
    if placement.device_type != "cpu":
        _fork_servers.release()
    return placement


def start_rank(device: str, connection: int, log: IO[bytes], timeout: float) -> Forked | subprocess.Popen[bytes]:
    """Start the process of a rank in a session of its own: Ctrl-C reaches the parent alone, which decides what follows.

    A rank on the CPU is forked where there is a server: on Linux, elsewhere libraries do not outlive a fork. Nor does
    CUDA, should a library have used it at import: a rank on a GPU is not forked.

    Args:
        device: Of the rank.
        connection: See `ForkServer.fork`.
        log: Likewise.
        timeout: Likewise.
    """
    forked = _fork_servers.fork(connection, log, timeout) if device == "cpu" else None
    return forked or _start("worker", connection, log, _environment(device))


def _start(module: str, descriptor: int, log: IO[bytes], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a module of this package with an inherited descriptor."""
    return subprocess.Popen(
        [*_command(module), str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def _command(module: str) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.{module}"]


def _end(server: subprocess.Popen[bytes], requests: socket.socket, log: IO[bytes]) -> None:
    requests.close()
    server.kill()
    server.wait()
    log.close()


def _environment(device: str) -> dict[str, str]:
    """The variables of a rank; on the CPU it has one thread and the loopback network."""
    package_root = str(Path(__file__).parents[2])  # found by ranks however the parent found it
    search_path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": search_path, "TOKENIZERS_PARALLELISM": "false"}
    if device == "cpu":
        environment["OMP_NUM_THREADS"] = "1"
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        if loopback is not None:
            environment.setdefault("GLOO_SOCKET_IFNAME", loopback)
    return environment
