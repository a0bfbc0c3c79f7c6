"""Whose part of the picture the running thread has."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

from .group import ShardGroup

_RUNNING = threading.local()


class PartTensor(torch.Tensor):
    """A part of a tensor where networks expect the whole one; what is computed of it is one, too."""


def current_group() -> ShardGroup | None:
    """The group whose evaluation runs in this thread; None where networks run whole."""
    return getattr(_RUNNING, "group", None)


def current_part() -> tuple[int, int] | None:
    """Which part of how many the running thread has; None where networks run whole."""
    group = current_group()
    return None if group is None else (group.index, group.count)


def begin_block(name: str) -> None:
    """A compiled block of that name begins in this thread."""
    _RUNNING.block, _RUNNING.attentions = name, 0


def next_place() -> str:
    """The name of the next attention in the running block."""
    _RUNNING.attentions += 1
    return f"{_RUNNING.block}, attention {_RUNNING.attentions}"


@contextlib.contextmanager
def in_parts(group: ShardGroup | None) -> Iterator[None]:
    """While this lasts, networks that this thread runs have one part of the picture; without a group all of it."""
    before = current_group()
    _RUNNING.group = group
    try:
        yield
    finally:
        _RUNNING.group = before
