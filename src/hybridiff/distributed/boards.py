"""Memory that ranks of one machine share, for long messages: each writes to its own and reads that of the others."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from .comm import Tell

PAGE = 2**26
"""Bytes of the longest message that finds room. Memory that nobody writes to takes none."""


class Boards:
    """What each rank of a group has written, for the others to read.

    A board has two pages, which its rank uses in turns. Who writes to a page for the second time has, in between, heard
    of the others' other page: by then they had read this one. That there is something to read is told by other means.

    Args:
        own: This rank's memory, of two pages.
        others: That of the others, by rank.
    """

    def __init__(self, own: mmap.mmap, others: Mapping[int, mmap.mmap]) -> None:
        self._own, self._others = own, others
        self._page = 0

    @classmethod
    def share(cls, rank: int, tell: Tell) -> Boards | None:
        """The boards of a group, whose ranks call this together; None where some cannot read those of others.

        Args:
            rank: This one.
            tell: How they hear where to look.
        """
        memory, machine = _new_memory(), _machine()
        with contextlib.ExitStack() as closing:
            if memory is not None:
                closing.callback(os.close, memory)
            places = tell(None if memory is None or machine is None else (machine, os.getpid(), memory))
            boards: dict[int, mmap.mmap] = {}
            if None not in places and len({machine for machine, *_ in places}) == 1:
                with contextlib.suppress(OSError):
                    boards = {
                        other: _opened(process, its, other == rank) for other, (_, process, its) in enumerate(places)
                    }
            if not all(tell(bool(boards))):
                return None
        return cls(boards.pop(rank), boards)

    def write(self, pieces: Sequence[memoryview]) -> None:
        """Turn the page, and write.

        Args:
            pieces: One that all ranks read, or one for each rank, all of one length; `PAGE` bytes together at most.
        """
        self._page = PAGE - self._page
        begin = self._page
        for piece in pieces:
            self._own[begin : begin + len(piece)] = piece
            begin += len(piece)

    def read(self, other: int, number: int, into: memoryview) -> None:
        """Read a piece of what another rank has written as this rank wrote last.

        Args:
            other: The rank.
            number: Of the piece.
            into: Takes it.
        """
        begin = self._page + number * len(into)
        with memoryview(self._others[other]) as board:
            into[:] = board[begin : begin + len(into)]


def _new_memory() -> int | None:
    """Memory without a name, as a file descriptor; None where there is no such thing."""
    try:
        memory = os.memfd_create("hybridiff")
    except (AttributeError, OSError):
        return None
    os.ftruncate(memory, 2 * PAGE)
    return memory


def _machine() -> tuple[str, str] | None:
    """The same for ranks whose process numbers mean the same; None where this cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _opened(process: int, memory: int, is_own: bool) -> mmap.mmap:
    """The memory of a process, to be read, or written where it is this one's."""
    found = os.open(f"/proc/{process}/fd/{memory}", os.O_RDWR if is_own else os.O_RDONLY)
    try:
        return mmap.mmap(found, 2 * PAGE, access=mmap.ACCESS_WRITE if is_own else mmap.ACCESS_READ)
    finally:
        os.close(found)
