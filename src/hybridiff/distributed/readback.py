"""A few numbers on their way from a device to the host: the one place where the host waits for a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from ..errors import CommError

_NAP = 5e-5
"""Seconds between two looks at an event: far below a step, and the core is free for other threads."""


class Event(Protocol):
    """What a device says of work that was put into its stream, as `torch.cuda.Event` does."""

    def record(self, stream: Any = None) -> None:
        """Mark this place in the stream."""

    def query(self) -> bool:
        """Whether the device has come this far."""


class HostEvent:
    """The event of a CPU, whose work is done when it is put in."""

    def record(self, stream: Any = None) -> None:
        """Nothing is outstanding."""

    def query(self) -> bool:
        """Always."""
        return True


def device_event(device: torch.device) -> Event:
    """An event of a device."""
    return torch.cuda.Event() if device.type == "cuda" else HostEvent()  # type: ignore[no-untyped-call]


class Readback:
    """A tensor that is copied to the host behind all work so far; nothing waits until it is asked for.

    CPU tensors go the very same way, copied into host memory and guarded by an event that has always happened.

    Args:
        values: 1-D, on any device.
        make_event: Makes the event that says when the copy has arrived.
    """

    def __init__(self, values: torch.Tensor, make_event: Callable[[torch.device], Event] = device_event) -> None:
        device = values.device
        is_gpu = device.type == "cuda"
        self._host = torch.empty(values.shape, dtype=torch.float32, device="cpu", pin_memory=is_gpu)
        self._host.copy_(values, non_blocking=True)
        self._event = make_event(device)
        self._event.record(*((torch.cuda.current_stream(device),) if is_gpu else ()))

    def wait(self, timeout: float) -> list[float]:
        """The numbers, once they are there.

        Raises:
            CommError: they did not come within `timeout` seconds; a message before them waits for another rank.
        """
        deadline = time.monotonic() + timeout
        while not self._event.query():
            if time.monotonic() > deadline:
                raise CommError(f"no answer from the other ranks within {timeout:g} s, or one died")
            time.sleep(_NAP)
        values: list[float] = self._host.tolist()
        return values
