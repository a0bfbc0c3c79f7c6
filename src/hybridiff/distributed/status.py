"""The status slot: how a rank fares, in the last elements of every buffer it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch

from ..schedule.kinds import StepKind

SLOT = 4
"""Elements of a status slot: status, kind of step with guidance, the step in two digits; bfloat16 is exact to 256."""

_BASE = 128
_KINDS = list(StepKind)


class Status(IntEnum):
    """How a rank fares."""

    WORKING = 0
    INTERRUPTED = 1
    FINISHED = 2
    FAILED = 3

    @property
    def is_leaving(self) -> bool:
        """Whether the rank sends nothing more in this run."""
        return self >= Status.FINISHED


@dataclass(frozen=True)
class Slot:
    """One status slot, as read."""

    status: Status
    kind: StepKind
    step: int
    is_guided: bool = True

    @classmethod
    def decode(cls, values: Sequence[float]) -> Slot:
        """The slot that `SLOT` numbers stand for."""
        status, code, low, high = map(int, values)
        return cls(Status(status), _KINDS[code // 2], low + _BASE * high, code % 2 == 0)

    @property
    def place(self) -> str:
        """The step that the rank is in, for errors."""
        return f"step {self.step} ({self.kind.value}{'' if self.is_guided else ', guidance off'})"


class SlotTable:
    """All slots that a run may need, on the device: writing one is one small copy there, nothing crosses from the host.

    Args:
        steps: Number of steps of the run.
        like: A tensor with the dtype and device of the buffers.
    """

    def __init__(self, steps: int, like: torch.Tensor) -> None:
        self._steps = steps
        ranges = map(torch.arange, (len(Status), 2 * len(_KINDS), steps + 1))
        status, code, step = torch.meshgrid(*ranges, indexing="ij")
        # (status, kind and guidance, step, SLOT)
        self._table = torch.stack([status, code, step % _BASE, step // _BASE], dim=-1).to(like)

    def write(self, buffer: torch.Tensor, slot: Slot) -> None:
        """Put a slot at the end of a buffer."""
        code = 2 * _KINDS.index(slot.kind) + (not slot.is_guided)
        buffer[-SLOT:].copy_(self._table[slot.status, code, min(slot.step, self._steps)])
