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
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Protocol

from ..distributed.placement import Placement, is_under_torchrun

logger = logging.getLogger("hybridiff")


class Process(Protocol):
    """What the parent knows of a rank's process; `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None:
        """Its exit code, negative where a signal ended it; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended; raises `subprocess.TimeoutExpired` where it runs on."""

    def kill(self) -> None:
        """End it now."""


@dataclass(frozen=True)
class Surroundings:
    """What a process inherits from the one that starts it.

    Libraries read much of it when they are imported, so that a server can only fork ranks for the surroundings in which
    it was started itself.
    """

    parent: int
    folder: str
    cores: frozenset[int]
    environment: dict[str, str]

    @classmethod
    def of_rank(cls, device: str) -> Surroundings:
        """What a rank inherits; raises OSError where the current folder was deleted."""
        return cls(os.getpid(), os.getcwd(), frozenset(os.sched_getaffinity(0)), _environment(device))


class Forked:
    """The process of a rank that a server forked for this one; see `Process`."""

    def __init__(self, server: ForkServer, pid: int, told: Connection) -> None:
        self.pid = pid
        self._server = server  # which is there as long as its ranks
        self._told = told
        self._parent = os.getpid()
        self._code: int | None = None
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """See `Process`."""
        return self._exit_code(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """See `Process`."""
        code = self._exit_code(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"rank {self.pid}", timeout or 0.0)
        return code

    def kill(self) -> None:
        """See `Process`."""
        if self.poll() is None:
            self._kill()

    def _exit_code(self, timeout: float | None) -> int | None:
        if os.getpid() != self._parent:
            return 0  # a fork of the parent has no say, as with a Popen
        if self._code is None and self._told.poll(timeout):
            with self._lock:
                self._code = self._hear() if self._code is None else self._code
        return self._code

    def _hear(self) -> int:
        try:
            code: int = self._told.recv()
        except (EOFError, OSError):  # the server is gone: nobody else would learn how this process ends
            self._kill()
            code = -signal.SIGKILL
        return code

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)


class ForkServer:
    """A process that forks ranks (see `forkserver`); it ends with the last reference to it, or with this process."""

    def __init__(self, surroundings: Surroundings) -> None:
        self.surroundings = surroundings
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the server
        with theirs:
            self._process = _start("forkserver", theirs.fileno(), self._log, surroundings.environment)
        weakref.finalize(self, _end, self._process, self._requests, self._log)

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def fork(self, connection: int, log: IO[bytes], timeout: float) -> Forked:
        """Fork a rank.

        Args:
            connection: Descriptor of its connection to this process.
            log: Takes its output.
            timeout: Seconds for the server to have imported everything.

        Raises:
            OSError, EOFError: the server is gone, or is silent.
        """
        told, theirs = Pipe(duplex=False)
        with theirs:
            socket.send_fds(self._requests, [b" "], [connection, log.fileno(), theirs.fileno()])
        if not told.poll(timeout):
            raise OSError(f"no sign of life for {timeout:g} s")
        return Forked(self, told.recv(), told)

    def last_words(self) -> str:
        """The last line that it wrote."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")


class _ForkServers:
    """The server of this process for its present surroundings; one that cannot be had is not tried again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # several engines may be made at once
        self._server: ForkServer | None = None
        self._is_given_up = sys.platform != "linux"

    def fork(self, connection: int, log: IO[bytes], timeout: float) -> Forked | None:
        """See `ForkServer.fork`; None where there is no server."""
        server = None
        try:
            with self._lock:
                if self._is_given_up:
                    return None
                server = self._present()
            return server.fork(connection, log, timeout)
        except (OSError, EOFError) as error:
            self._give_up(server.last_words() if server is not None else "", error)
            return None

    def prepare(self) -> None:
        """Have a server begin with its imports."""
        with self._lock, suppress(OSError):
            if not self._is_given_up:
                self._present()

    def release(self) -> None:
        """End the server once it has no ranks."""
        with self._lock:
            self._server = None

    def _present(self) -> ForkServer:
        surroundings = Surroundings.of_rank("cpu")
        if self._server is None or self._server.surroundings != surroundings or not self._server.is_alive:
            self._server = ForkServer(surroundings)
        return self._server

    def _give_up(self, last_words: str, error: Exception) -> None:
        with self._lock:
            is_news, self._is_given_up, self._server = not self._is_given_up, True, None
        if is_news:
            why = last_words or str(error) or "it ended"
            logger.warning("no fork server (%s): each rank imports by itself, which takes seconds longer", why)


_fork_servers = _ForkServers()


def find_placement(devices: int | None, device: str, simulate: bool) -> Placement:
    """See `Placement.resolve`. Should that import torch to count GPUs, a fork server is at its imports meanwhile."""
    if device != "auto" or "torch" in sys.modules or is_under_torchrun():
        return Placement.resolve(devices, device, simulate)
    _fork_servers.prepare()
    is_wanted = False
    try:
        placement = Placement.resolve(devices, device, simulate)
        is_wanted = placement.device_type == "cpu"
    finally:
        if not is_wanted:
            _fork_servers.release()
    return placement


def start_rank(device: str, connection: int, log: IO[bytes], timeout: float) -> Process:
    """Start the process of a rank in a session of its own, which Ctrl-C does not reach.

    A rank on the CPU is forked, where there is a server to fork it: Linux alone forks safely what has imported that
    much. One on a GPU is not: CUDA does not outlive a fork, and libraries may use it when they are imported.

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
        [sys.executable, "-m", f"{__package__}.{module}", str(descriptor)],
        pass_fds=[descriptor],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


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
