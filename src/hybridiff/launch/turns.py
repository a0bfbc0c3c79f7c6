"""Callers that wait for one another."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from ..errors import UsageError


class Turns:
    """A lock that threads get in the order in which they asked."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[int] = deque()

    def refuse_within(self) -> None:
        """Refuse a thread that has its turn, or waits for it.

        Raises:
            UsageError: it would wait for itself.
        """
        if threading.get_ident() in self._waiting:
            raise UsageError("on_step cannot call the engine that it is called by; do so after generate")

    @contextlib.contextmanager
    def wait(self) -> Iterator[None]:
        """Wait for this thread's turn, and hold it."""
        mine = threading.get_ident()
        with self._changed:
            self.refuse_within()
            self._waiting.append(mine)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting[0] == mine)
            yield
        finally:
            with self._changed:
                self._waiting.remove(mine)
                self._changed.notify_all()
