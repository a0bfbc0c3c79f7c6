"""Where a process stands: how many ranks there are, which of them it is, and on which device."""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from ..errors import CommError, UsageError
from ..utils.names import require_known

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cuda", "cpu")
DEFAULT_RANKS = 2
"""Ranks where neither the user nor torchrun says how many."""
_JOINS = itertools.count()
"""Groups made in this process, the same on all ranks: a store still holds the addresses of the groups before."""


@dataclass(frozen=True)
class Placement:
    """The place of one rank.

    Attributes:
        world: Processes that generate together; 1 under `simulate`, where one process plays all ranks.
        rank: Which of the processes it is; 0 leads.
        local_rank: Which of those on its machine it is.
        local_world: Number of processes on its machine.
        device: `cpu`, or this rank's GPU: `cuda:0`.
        under_torchrun: Whether torchrun started it.
    """

    world: int
    rank: int
    local_rank: int
    local_world: int
    device: str
    under_torchrun: bool

    @classmethod
    def resolve(cls, devices: int | None = None, device: str = "auto", simulate: bool = False) -> Placement:
        """The place of this process under torchrun; elsewhere that of rank 0 of the ranks to be started.

        Imports torch only to count GPUs, which `cpu` does not need.

        Args:
            devices: Number of ranks; None takes torchrun's, or 2.
            device: `cuda` (a GPU for each rank), `cpu` (a core for each rank), or `auto`: CUDA where there is any.
            simulate: Whether one process plays all ranks.

        Raises:
            UsageError: an unknown device, another number of ranks than torchrun started, or too few GPUs.
        """
        require_known("device", device, DEVICES)
        torchrun = is_under_torchrun()
        started = int(os.environ["WORLD_SIZE"]) if torchrun else 1 if simulate else devices or DEFAULT_RANKS
        if torchrun and not simulate and devices not in (None, started):
            raise UsageError(f"{devices} ranks requested, torchrun started {started}; use --devices {started}")
        rank = int(os.environ["RANK"]) if torchrun else 0
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", started)) if torchrun else started
        kind = _device_type(device, local_world)
        place = cls(1 if simulate else started, rank, 0, local_world, kind, torchrun)
        return place._at(rank, int(os.environ.get("LOCAL_RANK", rank)) if torchrun else rank)

    def of_rank(self, rank: int) -> Placement:
        """The place of another rank on this machine."""
        return self._at(rank, rank)

    @property
    def device_type(self) -> str:
        """`cuda` or `cpu`."""
        return self.device.partition(":")[0]

    def take_core(self) -> None:
        """On the CPU, compute with one thread, pinned to a core of its own where there is one for each rank."""
        if self.device_type != "cpu":
            return
        import torch

        torch.set_num_threads(1)
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(cores) >= self.local_world:
            os.sched_setaffinity(0, {cores[self.local_rank]})

    def join(self, timeout: float, rendezvous: str | None = None) -> bool:
        """Make this rank's GPU the current one, and find the other ranks: by NCCL for GPUs, by gloo for CPUs.

        Args:
            timeout: Deadline in seconds for the ranks to find each other.
            rendezvous: A file by which they do so; None takes torchrun's address.

        Returns:
            Whether a process group was made here, to be left by `leave_process_group`.

        Raises:
            CommError: they did not find each other.
        """
        import torch
        import torch.distributed as dist
        from torch.distributed.distributed_c10d import PrefixStore
        from torch.distributed.rendezvous import rendezvous as meet

        if self.device_type == "cuda":
            torch.cuda.set_device(self.device)
        if self.world == 1 or dist.is_initialized():
            return False
        deadline = timedelta(seconds=timeout)
        where = "env://" if rendezvous is None else f"file://{rendezvous}"
        backend = "nccl" if self.device_type == "cuda" else "gloo"
        try:
            store, _, _ = next(meet(where, self.rank, self.world, timeout=deadline))
            store = PrefixStore(f"hybridiff {next(_JOINS)}", store)
            dist.init_process_group(backend, store=store, rank=self.rank, world_size=self.world, timeout=deadline)
        except RuntimeError as error:
            raise CommError(
                f"rank {self.rank} did not find the other {self.world - 1} within {timeout:g} s ({error}); start all "
                "ranks again"
            ) from error
        return True

    def _at(self, rank: int, local_rank: int) -> Placement:
        device = "cpu" if self.device_type == "cpu" else f"{self.device_type}:{local_rank}"
        return replace(self, rank=rank, local_rank=local_rank, device=device)


def is_under_torchrun() -> bool:
    """Whether this process is a rank that torchrun, or something like it, started."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def join_torchrun(device: torch.device, timeout: float) -> bool:
    """Join the other ranks that torchrun started, where nobody has done so yet; see `Placement.join`."""
    import torch.distributed as dist

    if not is_under_torchrun() or dist.is_initialized():
        return False
    placement = Placement.resolve(device="cpu")  # no matter how many GPUs there are: the pipeline is on its own
    return replace(placement, device=str(device)).join(timeout)


def leave_process_group() -> None:
    """Undo `Placement.join` or `join_torchrun`."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()


def _device_type(device: str, ranks: int) -> str:
    """`cuda` or `cpu` for this many ranks on one machine."""
    if device == "cpu":
        return device
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto" and found == 0:
        return "cpu"
    if found < ranks:
        fewer = f"--devices {found} or " if found else ""
        raise UsageError(
            f"{ranks} rank{'s' * (ranks > 1)} requested, {found} GPU{'s' * (found != 1)} found; use {fewer}--device cpu"
        )
    return "cuda"
