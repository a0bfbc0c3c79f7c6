"""What each rank did when, and the trace of it for a browser."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import UsageError


@dataclass(frozen=True)
class Span:
    """Something a rank did.

    Attributes:
        rank: Who.
        name: What.
        category: `stage` or `message`.
        start: Wall clock in seconds.
        seconds: How long.
    """

    rank: int
    name: str
    category: str
    start: float
    seconds: float


class Timeline:
    """Collects spans of one run on this process; costs nothing unless it is switched on.

    Args:
        enabled: Whether spans are kept.
        synchronize: Waits for the device, so that a span holds the work that was started in it.
    """

    def __init__(self, enabled: bool = False, synchronize: Callable[[], None] | None = None) -> None:
        self.enabled = enabled
        self.spans: list[Span] = []
        self._synchronize = synchronize

    @contextmanager
    def span(self, rank: int, name: str, category: str) -> Iterator[None]:
        """Record what happens inside as done by `rank`."""
        if not self.enabled:
            yield
            return
        start = time.time()
        try:
            yield
        finally:
            if self._synchronize is not None:
                self._synchronize()
            self.spans.append(Span(rank, name, category, start, time.time() - start))


def write_chrome_trace(spans: Sequence[Span], path: Path) -> None:
    """Write the spans of a run for chrome://tracing or ui.perfetto.dev, one lane per rank.

    Raises:
        UsageError: the run recorded none.
    """
    if not spans:
        raise UsageError("this run recorded no trace; run it with ParallelConfig(trace=True)")
    origin = min(span.start for span in spans)
    lanes = [
        {"name": "thread_name", "ph": "M", "pid": 0, "tid": rank, "args": {"name": f"rank {rank}"}}
        for rank in sorted({span.rank for span in spans})
    ]
    events = [
        {
            "name": span.name,
            "cat": span.category,
            "ph": "X",
            "pid": 0,
            "tid": span.rank,
            "ts": (span.start - origin) * 1e6,
            "dur": span.seconds * 1e6,
        }
        for span in spans
    ]
    path.write_text(json.dumps({"traceEvents": [*lanes, *events], "displayTimeUnit": "ms"}))
