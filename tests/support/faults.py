"""Step-end callbacks that make one rank misbehave; they travel to an Engine's ranks by name."""

from __future__ import annotations

import time
from typing import Any

import torch.distributed as dist

AT_STEP = 2


def raise_on_rank_1(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == AT_STEP and dist.get_rank() == 1:
        raise RuntimeError("the lamp went out")
    return tensors


def stall_on_rank_1(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == AT_STEP and dist.get_rank() == 1:
        time.sleep(600)
    return tensors
