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


def run_ranks(
    function: Callable[..., Any], ranks: int, *args: Any, timeout: float = 120.0, may_die: Collection[int] = ()
) -> list[Any]:
    """Run a function on several ranks at once.

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
    _context.set_forkserver_preload(_IMPORTED_ONCE)
    job = pickle.dumps((function, args))  # plain bytes both ways: shared memory would die with a rank
    with tempfile.TemporaryDirectory() as folder:
        pipes = [_context.Pipe(duplex=False) for _ in range(ranks)]
        processes = [
            _context.Process(target=_rank_main, args=(rank, ranks, folder, sender, job), daemon=True)
            for rank, (_, sender) in enumerate(pipes)
        ]
        try:
            for process, (_, sender) in zip(processes, pipes, strict=True):
                process.start()
                sender.close()  # the rank's own end is then the only one, and its death is the end of the pipe
            waited_for = {pipes[rank][0]: rank for rank in range(ranks) if rank not in may_die}
            replies = _receive(waited_for, time.monotonic() + timeout)
        finally:
            for process in processes:
                process.kill()
                process.join()
    failures = [f"--- rank {rank} ---\n{text}" for rank, (ok, text) in sorted(replies.items()) if not ok]
    if failures:
        raise RanksFailed("\n".join(failures))
    return [replies[rank][1] if rank in replies else None for rank in range(ranks)]


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
            except EOFError:
                replies[rank] = (False, "died without a word")
    return replies


def _rank_main(rank: int, ranks: int, folder: str, sender: connection.Connection, job: bytes) -> None:
    try:
        _join_group(rank, ranks, folder)
        function, args = pickle.loads(job)
        reply = (True, function(*args))
    except BaseException:
        reply = (False, traceback.format_exc())
    sender.send_bytes(pickle.dumps(reply))
    sender.close()
    os._exit(0)  # a broken group must not hold the process up at its end


def _join_group(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=timedelta(seconds=60))
