"""What ranks said of themselves in the latest message: read once somebody asks, without blocking before."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .readback import Readback
from .status import SLOT, Slot, Status


class Reading:
    """The status slots of one message, and a few scalars with them, on their way to the host.

    Args:
        slots: The slot of each rank that was heard.
        finite: Whether each rank sent finite numbers only, (size,); empty where that was not looked at.
        scalars: Numbers to be read with them, 1-D float32.
        where: The place of the message, for errors.
        wait: Waits for a readback, with the run's deadline.
        heed: Acts on what was read, once.
    """

    def __init__(
        self,
        slots: dict[int, torch.Tensor],
        finite: torch.Tensor,
        scalars: torch.Tensor,
        where: str,
        wait: Callable[[Readback], list[float]],
        heed: Callable[[Reading], None],
    ) -> None:
        self._ranks = list(slots)
        self._flags = len(finite)
        self._readback: Readback | None = Readback(
            torch.cat([*(slot.float() for slot in slots.values()), finite.float(), scalars])
        )
        self._values: list[float] = []
        self._where, self._wait_for, self._heed = where, wait, heed
        self._heeded = False

    def values(self) -> list[float]:
        """The scalars; waits for the device, and heeds what the ranks say of themselves.

        Raises:
            RankError: see `Channel.heed_unread`.
        """
        self._wait()
        if not self._heeded:
            self._heeded = True
            self._heed(self)
        return self._values[len(self._ranks) * SLOT + self._flags :]

    def statuses(self) -> list[Status]:
        """How the ranks that were heard fare."""
        return [slot.status for slot in self._slots()]

    def problem(self) -> str | None:
        """Why the run cannot go on though no rank failed, in one sentence; all ranks read the same."""
        slots = self._slots()
        if len({slot.place for slot in slots}) > 1:
            places = [f"rank {rank} at {slot.place}" for rank, slot in zip(self._ranks, slots, strict=True)]
            return f"ranks are at different steps: {', '.join(places)}; make the same call on every rank"
        others = [rank for rank, slot in zip(self._ranks, slots, strict=True) if not slot.has_sample_of(slots[0])]
        if others and not any(slot.status for slot in slots):  # who is interrupted may not have come to the next sample
            return (
                f"rank {others[0]} was given another sample than rank {self._ranks[0]} in {self._where}: a callback "
                "must do the same on every rank"
            )
        flags = self._values[len(self._ranks) * SLOT :][: self._flags]
        if not all(flags):
            return (
                f"rank {flags.index(0.0)} predicted NaN or infinity in {self._where}; if the network runs in float16, "
                "try bfloat16 or float32"
            )
        return None

    def _slots(self) -> list[Slot]:
        self._wait()
        return [Slot.decode(self._values[i * SLOT : (i + 1) * SLOT]) for i in range(len(self._ranks))]

    def _wait(self) -> None:
        if self._readback is not None:
            self._values = self._wait_for(self._readback)
            self._readback = None
