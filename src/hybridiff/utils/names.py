"""Names that users choose from."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import UsageError


def require_known(what: str, name: object, choices: Iterable[str]) -> None:
    """Refuse a name that is not among the choices.

    Raises:
        UsageError: with the names that would do.
    """
    choices = list(choices)
    if name not in choices:
        raise UsageError(f"unknown {what} {name!r}; choose one of {', '.join(choices)}")
