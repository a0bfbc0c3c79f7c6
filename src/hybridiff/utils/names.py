"""Names that users choose from."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


def require_known(what: str, name: object, choices: Iterable[str]) -> None:
    """Refuse a name that is not among the choices.

    Raises:
        UsageError: with the names that would do.
    """
    choices = list(choices)
    if name not in choices:
        raise UsageError(f"unknown {what} {name!r}; choose one of {', '.join(choices)}")


@functools.cache
def offered(group: str) -> dict[str, EntryPoint]:
    """What installed packages offer in a group of entry points, by name; none of it is imported."""
    from importlib.metadata import entry_points

    return {point.name: point for point in sorted(entry_points(group=group), key=lambda point: point.name)}
