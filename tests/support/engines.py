"""Engines for tests, and what is left of their processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from hybridiff import Engine, ParallelConfig

PROMPT = "a large red ring on a white background"
TESTS = Path(__file__).parent.parent
SOURCE = TESTS.parent / "src"


def start(**options: Any) -> Engine:
    """The small model on two ranks."""
    return Engine("tiny-sdxl", 2, ParallelConfig(strategy="cfg"), device="cpu", **options)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not yet waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return not Path("/proc").exists()  # where there is none, it is as the signal says
    state, threads = fields[0], int(fields[17])
    return not (state == "Z" and threads <= 1)  # with more threads its parent cannot wait for it yet


def wait_for_end(pids: list[int], seconds: float = 20.0) -> list[int]:
    """The processes that are still alive at the deadline."""
    deadline = time.monotonic() + seconds
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [pid for pid in pids if is_alive(pid)]
