"""The status slot: how a rank fares, in the last elements of every buffer it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch

from ..schedule.kinds import StepKind

_SAMPLE, _PLACE = 2, 4

SLOT = _SAMPLE + _PLACE
"""Elements of a status slot: two of the sample (`digest`), then status, kind of step with guidance, and the step in two
digits; bfloat16 is exact to 256."""

_APART = 1 / 32
"""By how much a digest may differ between devices that round differently, and in bfloat16."""

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
    sample: tuple[float, ...] = field(default=(), compare=False)

    @classmethod
    def decode(cls, values: Sequence[float]) -> Slot:
        """The slot that `SLOT` numbers stand for."""
        status, code, low, high = map(int, values[_SAMPLE:])
        sample = tuple(values[:_SAMPLE])
        return cls(Status(status), _KINDS[code // 2], low + _BASE * high, code % 2 == 0, sample)

    @property
    def place(self) -> str:
        """The step that the rank is in, for errors."""
        return f"step {self.step} ({self.kind.value}{'' if self.is_guided else ', guidance off'})"

    def has_sample_of(self, other: Slot) -> bool:
        """Whether both ranks were given the same sample, but for rounding; what is not finite is not compared."""
        return not any(abs(own - its) > _APART for own, its in zip(self.sample, other.sample, strict=True))


def digest(sample: torch.Tensor) -> torch.Tensor:
    """Two numbers that tell samples apart, (2,) in float32: where in it values are large, and how large they are."""
    values = sample.detach().float().flatten()
    norm = values.norm()
    place = torch.arange(len(values), dtype=torch.float32, device=values.device).sin() @ values
    return torch.stack([place / norm, (norm / len(values) ** 0.5).log2()])


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
        # (status, kind and guidance, step, _PLACE)
        self._table = torch.stack([status, code, step % _BASE, step // _BASE], dim=-1).to(like)

    def write(self, buffer: torch.Tensor, slot: Slot, sample: torch.Tensor | None = None) -> None:
        """Put a slot at the end of a buffer, with the digest of a sample where there is one."""
        if sample is not None:
            buffer[-SLOT:-_PLACE].copy_(sample)
        code = 2 * _KINDS.index(slot.kind) + (not slot.is_guided)
        buffer[-_PLACE:].copy_(self._table[slot.status, code, min(slot.step, self._steps)])
