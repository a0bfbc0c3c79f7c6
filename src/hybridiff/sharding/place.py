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


@contextlib.contextmanager
def in_parts(group: ShardGroup) -> Iterator[None]:
    """While this lasts, networks that this thread runs have one part of the picture."""
    before = current_group()
    _RUNNING.group = group
    try:
        yield
    finally:
        _RUNNING.group = before
