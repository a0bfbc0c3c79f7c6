"""The fork server: a process that has imported what ranks need, and forks itself for each of them.

Run as `python -m hybridiff.launch.forkserver FD`. For every rank three descriptors arrive over the inherited socket FD:
its connection to the Engine, its log, and a pipe on which the server tells its process id and how it ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from multiprocessing.connection import Connection, wait

from . import worker

IDLE = 60.0
"""Seconds without ranks after which the server ends: what it shared with them it then holds alone, some 350 MB."""


class ForkServer:
    """Forks ranks for the process at the other end of a socket, until that hangs up or has no ranks for long."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests
        self._ranks: dict[int, tuple[int, Connection]] = {}  # by descriptor: process id, whom to tell of its end

    def serve(self) -> int | None:
        """Fork a rank a request. Returns in the rank: its connection to the Engine; and in the server, at its end."""
        while True:
            events = wait([self._requests, *self._ranks], None if self._ranks else IDLE)
            if not events:
                return None
            for ready in events:
                if isinstance(ready, int):
                    self._bury(ready)
                    continue
                _, descriptors, _, _ = socket.recv_fds(self._requests, 1, 3)
                if not descriptors:  # the parent hung up
                    for pid, _ in self._ranks.values():
                        os.kill(pid, signal.SIGKILL)
                    return None
                connection, log, told = descriptors
                if self._fork(log, told):
                    return connection
                os.close(connection)
                os.close(log)

    def _fork(self, log: int, told: int) -> bool:
        """Whether this is the rank, after a fork."""
        with Connection(told, readable=False) as parent:
            try:
                pid = os.fork()
            except OSError:  # no memory, or too many processes; the parent hears nothing, and then the pipe close
                return False
            if pid == 0:
                self._become_rank(log)
                return True
            self._ranks[os.pidfd_open(pid)] = pid, Connection(os.dup(told), readable=False)
            with contextlib.suppress(OSError):
                parent.send(pid)
            return False

    def _become_rank(self, log: int) -> None:
        """Leave what is the server's; be a process as if started by itself."""
        import numpy as np

        os.setsid()
        os.dup2(log, sys.stdout.fileno())
        os.dup2(log, sys.stderr.fileno())
        os.close(log)
        self._requests.close()
        for descriptor, (_, told) in self._ranks.items():
            os.close(descriptor)
            told.close()
        np.random.seed()  # else all ranks would draw the same; Python's own generator sees to itself

    def _bury(self, descriptor: int) -> None:
        pid, told = self._ranks.pop(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        with told, contextlib.suppress(OSError):
            told.send(os.waitstatus_to_exitcode(status))


def main(descriptor: int) -> None:
    """Import, fork as asked, and go on as a rank in what was forked."""
    requests = socket.socket(fileno=descriptor)
    os.close(os.pidfd_open(os.getpid()))  # raises where the kernel has none
    worker.import_all()
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        sys.exit(f"imports started {threads - 1} threads, which a fork would lose")
    connection = ForkServer(requests).serve()
    if connection is None:
        os._exit(0)  # at once: the parent sees that a request which comes now is not answered
    worker.main(connection)


if __name__ == "__main__":
    main(int(sys.argv[1]))
