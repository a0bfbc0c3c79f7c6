"""Events of devices that are late, or never answer."""

from __future__ import annotations

from typing import Any


class FakeEvent:
    """An event that has happened once it was asked for so many times; never, where that is None."""

    def __init__(self, ready_after: int | None) -> None:
        self.ready_after = ready_after
        self.recorded = 0
        self.queries = 0

    def record(self, stream: Any = None) -> None:
        self.recorded += 1

    def query(self) -> bool:
        self.queries += 1
        return self.ready_after is not None and self.queries > self.ready_after
