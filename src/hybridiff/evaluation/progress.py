"""How far long work is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Progress:
    """Counts what is done of some work, and tells.

    Args:
        tell: Is told after every piece what it belongs to, how many are done, and of how many.
        total: Number of pieces.
    """

    def __init__(self, tell: Callable[[str, int, int], None], total: int) -> None:
        self._tell, self._done, self._total = tell, 0, total

    def advance(self, what: str) -> None:
        """One more is done."""
        self._done += 1
        self._tell(what, self._done, self._total)

    def over(self, what: str, pieces: Iterable[T]) -> Iterator[T]:
        """The pieces; each is done when the next is asked for."""
        for piece in pieces:
            yield piece
            self.advance(what)
