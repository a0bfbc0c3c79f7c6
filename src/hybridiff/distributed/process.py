"""One rank per process: a group of torch.distributed with a deadline."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakSet

import torch
import torch.distributed as dist

from ..errors import CommError
from .comm import Buffers, Comm, Heard, LocalComm
from .wires import Wires

T = TypeVar("T")

_WATCHDOG_GRACE = 60.0
"""Seconds by which NCCL's watchdog, which ends the process, comes after our own deadline."""


class ProcessComm(Comm):
    """Ranks of the running process group, in a group of their own so that the deadline is ours.

    On the CPU (gloo) a message blocks until it is there or the deadline has passed; once they are connected, ranks
    gather over connections of their own (`Wires`). On GPUs (NCCL) it is only put into the stream; the deadline is kept
    where its status is read (`readback.Readback`), the one place where the host waits.

    Args:
        timeout: Deadline of every wait in seconds.
        ranks: Which ranks of the process group; all of them unless given. All ranks make all groups, in one order.
    """

    def __init__(self, timeout: float, ranks: Sequence[int] | None = None) -> None:
        super().__init__()
        self._world_ranks = list(range(dist.get_world_size())) if ranks is None else sorted(ranks)
        self.timeout = timeout
        self.size = len(self._world_ranks)
        self._on_host = dist.get_backend() == "gloo" or not torch.cuda.is_available()
        self._deadline = timedelta(seconds=timeout)
        self._later: WeakSet[_Later] = WeakSet()
        self._wires: Wires | None = None
        try:
            self._make_groups(ranks)
        except RuntimeError as error:
            raise CommError(
                f"the other ranks did not form a group within {timeout:g} s ({str(error).partition(', keys:')[0]}); "
                "start the ranks again"
            ) from error
        mine = dist.get_rank()
        self.local_ranks = (self._world_ranks.index(mine),) if mine in self._world_ranks else ()

    def _make_groups(self, ranks: Sequence[int] | None) -> None:
        grace = 0.0 if self._on_host else _WATCHDOG_GRACE
        self._group: Any = dist.new_group(ranks, timeout=timedelta(seconds=self.timeout + grace))
        # Objects travel by way of the host: no device memory, and a dead rank is noticed at once.
        self._host_group: Any = (
            self._group if self._on_host else dist.new_group(ranks, timeout=self._deadline, backend="gloo")
        )

    def all_gather(self, buffers: Buffers, out: torch.Tensor) -> None:
        wires, mine = self._wires, buffers[self.rank]
        if wires is not None and out.device.type == "cpu":
            self._guard(lambda: wires.all_gather(mine, out))
        else:
            self._guard(lambda: _all_gather(out.view(-1), mine, group=self._group))

    def start_all_gather(self, buffers: Buffers, out: torch.Tensor) -> Callable[[], None]:
        start = functools.partial(_all_gather, out.view(-1), buffers[self.rank], group=self._group, async_op=True)
        later = _Later(self._guard(start))
        self._later.add(later)
        return lambda: self._wait([later.work])

    def start_gather(self, mine: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        wires = self._wires
        if wires is None or not mine.is_cpu:
            return super().start_gather(mine, shapes)
        return functools.partial(self._guard, self._guard(lambda: wires.start_gather(mine, shapes)))

    def all_to_all(self, outgoing: Buffers, incoming: Buffers) -> None:
        wires, mine, into = self._wires, outgoing[self.rank], incoming[self.rank]
        if wires is not None and into.device.type == "cpu":
            self._guard(lambda: wires.all_to_all(mine, into))
        else:
            self._guard(lambda: dist.all_to_all_single(into, mine, group=self._group))

    def sendrecv(self, outgoing: Mapping[int, Buffers], incoming: Mapping[int, Buffers]) -> None:
        operations = [
            dist.P2POp(operation, buffer, self._world_ranks[other], self._group)
            for operation, buffers in ((dist.isend, outgoing[self.rank]), (dist.irecv, incoming[self.rank]))
            for other, buffer in buffers.items()
        ]
        self._wait(self._guard(lambda: dist.batch_isend_irecv(operations)))

    def broadcast(self, buffers: Mapping[int, Buffers]) -> None:
        def send() -> None:
            works = [  # all of them under way before the first wait, which may be interrupted
                dist.broadcast(copies[self.rank], self._world_ranks[source], group=self._group, async_op=True)
                for source, copies in buffers.items()
            ]
            for work in works:
                work.wait()

        self._guard(send)

    def all_gather_object(self, thing: T) -> list[T]:
        wires = self._wires
        if wires is not None:
            return self._guard(lambda: wires.all_gather_object(thing))
        things: list[Any] = [None] * self.size
        self._guard(lambda: dist.all_gather_object(things, thing, group=self._host_group))
        return things

    def split(self, groups: Sequence[Sequence[int]]) -> list[Comm | None]:
        comms = [ProcessComm(self.timeout, [self._world_ranks[rank] for rank in group]) for group in groups]
        for comm in comms:
            if comm.local_ranks:
                comm.connect()
        return [comm if comm.local_ranks else None for comm in comms]

    def close(self, aborts: bool = False) -> None:
        for later in self._later:  # they hold connections open, which is what the others would hear of an error by
            later.work = None
        self._cut_wires()
        if aborts:
            self._abort()
        # One that is left behind keeps its threads and connections. Of a broken one NCCL would wait for the others.
        if self._group is not None and dist.is_initialized() and (self._on_host or not self.broken):
            if self._host_group is not self._group:
                dist.destroy_process_group(self._host_group)
            dist.destroy_process_group(self._group)
        self._group = self._host_group = None

    def fail(self) -> None:
        super().fail()
        self._cut_wires()
        self._abort()

    def connect(self) -> None:
        """Let CPU ranks gather over connections of their own; all ranks of the group call it together."""

        def connect() -> None:
            self._wires = Wires.connect(self.rank, self.all_gather_object, self.timeout)

        if self._on_host and self.size > 1:
            self._guard(connect)

    def _abort(self) -> None:
        """End the kernels of a GPU that wait for a lost rank, for which NCCL would wait in turn where a group ends."""
        if not self._on_host and self._group is not None:
            with contextlib.suppress(RuntimeError):
                self._group.abort()

    def _cut_wires(self) -> None:
        if self._wires is not None:
            self._wires.close()
        self._wires = None

    def _wait(self, works: Sequence[Any]) -> None:
        # With a deadline NCCL's wait would block the host in mid-forward; without one it only orders the streams.
        deadline = (self._deadline,) if self._on_host else ()
        self._guard(lambda: [work.wait(*deadline) for work in works])

    def _guard(self, send: Callable[[], T]) -> T:
        if self.broken:
            raise CommError("the process group broke in an earlier step; start the ranks again")
        try:
            return send()
        except (RuntimeError, ValueError, OSError) as error:
            self.fail()
            raise CommError(
                f"no answer from the other ranks within {self.timeout:g} s, or one died: {error}"
            ) from error


class _Later:
    """A message in the background."""

    def __init__(self, work: Any) -> None:
        self.work = work


def _all_gather(*args: Any, **kwargs: Any) -> Any:
    # torch 2.13 renamed it, and warns of the older name.
    all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    return all_gather(*args, **kwargs)


def world_comm(timeout: float) -> Comm:
    """The ranks that torchrun or an Engine started; a single local one where there is no process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return LocalComm(1)
    comm = ProcessComm(timeout)
    comm.connect()
    return comm
