"""What makes one rank misbehave, or all of them; it travels to an Engine's ranks by name."""

from __future__ import annotations

import time
from typing import Any

import torch.distributed as dist

AT_STEP = 2


def raise_on_rank_1(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == AT_STEP and dist.get_rank() == 1:
        raise RuntimeError("the lamp went out")
    return tensors


def raise_value_error_on_all(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("not in this light")


def raise_another_error_on_each(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    raise ValueError(f"the lamp of rank {dist.get_rank()} went out")


def stall_on_rank_1(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == AT_STEP and dist.get_rank() == 1:
        time.sleep(600)
    return tensors


def dally_on_rank_1(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if step == AT_STEP and dist.get_rank() == 1:
        time.sleep(4.0)
    return tensors


class Unreadable:
    """Can be pickled, but not be unpickled."""

    def __reduce__(self) -> Any:
        return _refuse, ()


def _refuse() -> None:
    raise OSError("the ink has faded")
