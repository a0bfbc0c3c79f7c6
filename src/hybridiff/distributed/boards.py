"""Memory that ranks of one machine share for messages: each writes to its own and reads that of the others."""

from __future__ import annotations

import contextlib
import mmap
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .comm import Tell

PAGE = 2**26
"""Bytes of the longest message that finds room. Memory that nobody writes to takes none."""

_MOST_VIEWS = 1024
"""Tensors on boards that are kept for the messages to come."""


class Boards:
    """What each rank of a group has written, for the others to read.

    A board has two pages, which its rank uses in turns. Who writes to a page for the second time has, in between, heard
    of the others' other page: they have no more use for this one once they speak again. That there is something to
    read is told by other means.

    Args:
        own: This rank's memory, of two pages.
        others: That of the others, by rank.
    """

    def __init__(self, own: mmap.mmap, others: Mapping[int, mmap.mmap]) -> None:
        self._own, self._others = own, others
        self._page = 0
        self._views: dict[tuple[Any, ...], torch.Tensor] = {}

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

    def turn(self) -> None:
        """Go on with the other page."""
        self._page = PAGE - self._page

    def own(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """A tensor on this rank's page, to be written to."""
        return self._view(None, shape, dtype)

    def of(self, other: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """A tensor that another rank has written as this one wrote last; not to be written to."""
        return self._view(other, shape, dtype)

    def _view(self, rank: int | None, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        key = rank, self._page, shape, dtype
        if key not in self._views:
            if len(self._views) == _MOST_VIEWS:
                self._views.clear()
            self._views[key] = _tensor_at(self._own if rank is None else self._others[rank], *key[1:])
        return self._views[key]


def _tensor_at(memory: mmap.mmap, offset: int, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    with warnings.catch_warnings(), torch.inference_mode(False):
        warnings.simplefilter("ignore")  # that memory of others is not to be written to
        count = max(1, shape.numel())  # there is no tensor of nothing
        return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset)[: shape.numel()].view(shape)


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
