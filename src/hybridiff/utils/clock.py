"""How long a device takes for some work."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def synchronize(device: torch.device) -> None:
    """Wait for the work that was put into a device; on a CPU it is done at once."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that some work takes a device."""
    synchronize(device)
    begun = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - begun


def mark(device: torch.device) -> Any:
    """This place among the work of a device, for `elapsed`; does not wait for it."""
    if device.type != "cuda":
        return time.perf_counter()
    import torch

    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def elapsed(start: Any, end: Any) -> float:
    """Seconds between two marks of a device that was waited for since."""
    seconds: float = end - start if isinstance(start, float) else start.elapsed_time(end) / 1e3
    return seconds
