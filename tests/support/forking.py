"""A fork server whose imports are quick, and ranks that evaluate what they are sent.

`python -m support.forking forkserver|worker FD` stands in for the modules of `hybridiff.launch`;
`python -m support.forking parent HOW` starts two ranks, prints all process ids and ends as it is told.
"""

from __future__ import annotations

import os
import random  # noqa: F401 - for what is evaluated
import select
import signal
import sys
import threading
import time
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from hybridiff.launch import forkserver, processes, worker

FAULT, IDLE = "FAULT_OF_THE_FORK_SERVER", "IDLE_SECONDS_OF_THE_FORK_SERVER"


class Rank:
    """A rank, and the connection to it."""

    def __init__(self, log: Path, device: str = "cpu", timeout: float = 30.0) -> None:
        self._connection, theirs = Pipe()
        self.log = log
        with theirs, log.open("wb") as output:
            self.process = processes.start_rank(device, theirs.fileno(), output, timeout)

    def ask(self, expression: str) -> Any:
        """What it evaluates to in the rank."""
        self.tell(expression)
        assert self._connection.poll(30.0)
        return self._connection.recv()

    def tell(self, expression: str) -> None:
        """Have it evaluated, without an answer."""
        self._connection.send(expression)

    def hang_up(self) -> None:
        """At which it ends."""
        self._connection.close()


def command(module: str) -> list[str]:
    """Stands in for `processes._command`."""
    return [sys.executable, "-m", "support.forking", module]


def server_pid() -> int:
    """The process id of this process's fork server."""
    server = processes._fork_servers._server
    assert server is not None
    return server._process.pid


def _import() -> None:
    fault, _, flag = os.environ.get(FAULT, "").partition(" ")
    if fault == "error":
        raise ImportError("torch is broken")
    if fault == "thread":
        threading.Thread(target=time.sleep, args=(60.0,), daemon=True).start()
    if fault == "silent":
        time.sleep(60.0)
    if fault == "late" and not Path(flag).exists():  # the first request comes just as the server ends for want of one
        Path(flag).touch()
        select.select([int(sys.argv[2])], [], [])
        os._exit(0)


def _rank(descriptor: int) -> None:
    connection = Connection(descriptor)
    while True:
        try:
            connection.send(eval(connection.recv()))
        except EOFError:
            os._exit(0)


def _parent(how: str) -> None:
    processes._command = command
    ranks = [Rank(Path(os.devnull)) for _ in range(2)]
    sys.stdout.write(" ".join(str(pid) for pid in (server_pid(), *(rank.process.pid for rank in ranks))))
    sys.stdout.flush()
    if how == "os._exit":
        os._exit(0)
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "error":
        raise RuntimeError("as it was told")


def main() -> None:
    """Be what the first argument says."""
    worker.import_all, worker.main = _import, _rank
    forkserver.IDLE = float(os.environ.get(IDLE, forkserver.IDLE))
    role, argument = sys.argv[1:]
    if role == "parent":
        _parent(argument)
    else:
        (forkserver.main if role == "forkserver" else _rank)(int(argument))


if __name__ == "__main__":
    main()
