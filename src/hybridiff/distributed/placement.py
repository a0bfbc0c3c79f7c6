"""Where ranks are: what torchrun says of this process, and the process group that it is to join."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def is_under_torchrun() -> bool:
    """Whether this process is a rank that torchrun, or something like it, started."""
    return all(name in os.environ for name in _VARIABLES)


def join_torchrun(device: torch.device, timeout: float) -> bool:
    """Join the other ranks that torchrun started, where nobody has done so yet: NCCL for GPUs, gloo for CPUs.

    Args:
        device: Where this rank's pipeline is.
        timeout: Deadline in seconds for the ranks to find each other.

    Returns:
        Whether a group was made here, to be left by `leave_process_group`.
    """
    if dist.is_initialized() or not is_under_torchrun() or int(os.environ["WORLD_SIZE"]) == 1:
        return False
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    return True


def leave_process_group() -> None:
    """Undo `join_torchrun`."""
    if dist.is_initialized():
        dist.destroy_process_group()
