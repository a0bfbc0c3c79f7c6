"""The status slot: how a rank fares, in the last elements of every buffer it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch

from ..schedule.kinds import StepKind

SLOT = 4
"""Elements of a status slot: status, kind of step, and the step in two digits, as bfloat16 is exact up to 256 only."""

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

    @classmethod
    def decode(cls, values: Sequence[float]) -> Slot:
        """The slot that `SLOT` numbers stand for."""
        status, kind, low, high = map(int, values)
        return cls(Status(status), _KINDS[kind], low + _BASE * high)


class SlotTable:
    """All slots that a run may need, on the device: writing one is one small copy there, nothing crosses from the host.

    Args:
        steps: Number of steps of the run.
        like: A tensor with the dtype and device of the buffers.
    """

    def __init__(self, steps: int, like: torch.Tensor) -> None:
        self._steps = steps
        slots = [
            [[[status, kind, step % _BASE, step // _BASE] for step in range(steps + 1)] for kind in range(len(_KINDS))]
            for status in Status
        ]
        self._table = torch.tensor(slots).to(like)  # (status, kind, step, SLOT)

    def write(self, buffer: torch.Tensor, status: Status, kind: StepKind, step: int) -> None:
        """Put a slot at the end of a buffer."""
        buffer[-SLOT:].copy_(self._table[status, _KINDS.index(kind), min(step, self._steps)])
