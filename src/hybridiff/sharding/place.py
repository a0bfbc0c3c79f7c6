"""Whose part of the picture the running thread has."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from .group import ShardGroup

_RUNNING = threading.local()


def current_group() -> ShardGroup | None:
    """The group whose evaluation runs in this thread; None where networks run whole."""
    return getattr(_RUNNING, "group", None)


def begin_block(name: str) -> None:
    """A compiled block of that name begins in this thread."""
    _RUNNING.block, _RUNNING.attentions = name, 0


def next_place() -> str:
    """The name of the next attention in the running block."""
    _RUNNING.attentions += 1
    return f"{_RUNNING.block}, attention {_RUNNING.attentions}"


@contextlib.contextmanager
def in_parts(group: ShardGroup) -> Iterator[None]:
    """While this lasts, networks that this thread runs have one part of the picture."""
    before = current_group()
    _RUNNING.group = group
    try:
        yield
    finally:
        _RUNNING.group = before
