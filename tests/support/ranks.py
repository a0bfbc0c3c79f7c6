"""Real ranks on this machine: processes that form a gloo group, run one function, and never outlive the test."""

from __future__ import annotations

import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Collection
from datetime import timedelta
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Ranks are forked from a server that has imported these already: a rank starts in milliseconds, not in ten seconds.
_IMPORTED_ONCE = [
    "torch.distributed",
    "diffusers.hooks",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "hybridiff.pipeline",
    "pytest",
]
_context = get_context("forkserver")


class RanksFailed(AssertionError):
    """Some rank raised an error, died, or did not come to an end; the message holds every traceback."""


class Ranks:
    """Processes that form a group and run functions in turn; after a failure the next one has fresh processes.

    Args:
        ranks: Number of ranks.
        once: Every rank ends behind its first function, whatever the others still do.
    """

    def __init__(self, ranks: int, once: bool = False) -> None:
        self._ranks = ranks
        self._once = once
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._processes: list[Any] = []
        self._pipes: list[connection.Connection] = []

    def __enter__(self) -> Ranks:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(
        self, function: Callable[..., Any], *args: Any, timeout: float = 120.0, may_die: Collection[int] = ()
    ) -> list[Any]:
        """Run a function on all ranks at once; arguments, result and errors as `run_ranks` has them."""
        try:
            if not self._processes:
                self._start()
            job = pickle.dumps((function, args))  # plain bytes both ways: shared memory would die with a rank
            for pipe in self._pipes:
                pipe.send_bytes(job)
            waited_for = {pipe: rank for rank, pipe in enumerate(self._pipes) if rank not in may_die}
            replies = _receive(waited_for, time.monotonic() + timeout)
            failures = [f"--- rank {rank} ---\n{text}" for rank, (ok, text) in sorted(replies.items()) if not ok]
            if failures:
                raise RanksFailed("\n".join(failures))
        except BaseException:
            self.stop()  # what they still do, or would answer, belongs to nothing any more
            raise
        return [replies[rank][1] if rank in replies else None for rank in range(self._ranks)]

    def stop(self) -> None:
        """End the processes, whatever they do."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self) -> None:
        _context.set_forkserver_preload(_IMPORTED_ONCE)
        self._folder = tempfile.TemporaryDirectory()
        for rank in range(self._ranks):
            pipe, own_end = _context.Pipe()
            args = (rank, self._ranks, self._folder.name, own_end, self._once)
            self._pipes.append(pipe)
            self._processes.append(_context.Process(target=_rank_main, args=args, daemon=True))
            self._processes[-1].start()
            own_end.close()  # the rank's own end is then the only one, and its death is the end of the pipe


def run_ranks(
    function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 120.0, may_die: Collection[int] = ()
) -> list[Any]:
    """Run a function on several ranks at once, which end with it.

    Args:
        function: A function of a module, called as `function(*args)` on every rank within a process group.
        ranks: Number of ranks.
        args: What the function is given.
        timeout: Deadline in seconds for all ranks to end.
        may_die: Ranks that are meant to die or to stay behind; they are killed at the end and give None.

    Returns:
        What the function returned, in order of rank.

    Raises:
        RanksFailed: with the tracebacks.
    """
    with Ranks(ranks, once=True) as started:
        return started.run(function, *args, timeout=timeout, may_die=may_die)


def _receive(waited_for: dict[connection.Connection, int], deadline: float) -> dict[int, tuple[bool, Any]]:
    replies: dict[int, tuple[bool, Any]] = {}
    while waited_for:
        ready = connection.wait(list(waited_for), timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            return replies | dict.fromkeys(waited_for.values(), (False, "did not come to an end in time"))
        for pipe in ready:
            assert isinstance(pipe, connection.Connection)
            rank = waited_for.pop(pipe)
            try:
                replies[rank] = pickle.loads(pipe.recv_bytes())
            except (EOFError, ConnectionResetError):
                replies[rank] = (False, "died without a word")
    return replies


def _rank_main(rank: int, ranks: int, folder: str, pipe: connection.Connection, once: bool) -> None:
    try:
        joined = _reply(_join_group, rank, ranks, folder)
        while True:
            job = pipe.recv_bytes()
            pipe.send_bytes(pickle.dumps(_reply(_call, job) if joined[0] else joined))
            if once:
                break
    finally:
        os._exit(0)  # a broken group must not hold the process up at its end


def _reply(function: Callable[..., Any], *args: Any) -> tuple[bool, Any]:
    try:
        return True, function(*args)
    except BaseException:
        return False, traceback.format_exc()


def _call(job: bytes) -> Any:
    function, args = pickle.loads(job)
    return function(*args)


def _join_group(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
    # Who ends at once would close connections that others are still about to make.
    store.set(f"joined {rank}", "")
    store.wait([f"joined {other}" for other in range(ranks)])
