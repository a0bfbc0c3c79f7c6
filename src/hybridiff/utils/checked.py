"""Dataclasses of settings: each field with its help text and limits, checked when one is made."""

from __future__ import annotations

import math
import typing
from dataclasses import field, fields
from types import NoneType, UnionType
from typing import Any

from ..errors import UsageError

_WORDS: dict[type, str] = {bool: "true or false", int: "an integer", float: "a number", str: "text", dict: "a table"}
"""What users call a type."""


def setting(default: Any, text: str, **limits: float) -> Any:
    """A field with its help text and limits: `least`, `most`, `above` (exclusive)."""
    return field(default=default, metadata={"help": text, **limits})


def field_types(documented: type) -> dict[str, tuple[type, ...]]:
    """The types that each field of a config takes, by name."""
    return {
        name: typing.get_args(hint) if isinstance(hint, UnionType) else (typing.get_origin(hint) or hint,)
        for name, hint in typing.get_type_hints(documented).items()
    }


def check_fields(config: Any) -> None:
    """Refuse values of the wrong type or beyond the limits in a field's metadata; raises UsageError."""
    types = field_types(type(config))
    for entry in fields(config):
        value = getattr(config, entry.name)
        if object not in types[entry.name]:
            _check_type(entry.name, value, types[entry.name])
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            check_limits(entry.name, value, **{name: entry.metadata[name] for name in entry.metadata if name != "help"})


def _check_type(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    # In Python True is an int and 1 no float; to users it is the other way round.
    accepted = (*kinds, int) if float in kinds else kinds
    if isinstance(value, accepted) and (bool in kinds or not isinstance(value, bool)):
        return
    words = " or ".join(_WORDS.get(kind, kind.__name__) for kind in kinds if kind is not NoneType)
    raise UsageError(f"{name} must be {words}, got {value!r}")


def check_limits(
    name: str, value: float, least: float = -math.inf, most: float = math.inf, above: float = -math.inf
) -> None:
    """Refuse numbers that are not finite or out of range.

    Raises:
        UsageError: names the argument and what would do.
    """
    if not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, got {value}")
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    if value < least:
        raise UsageError(f"{name} must be at least {least:g}, got {shown}")
    if value <= above:
        raise UsageError(f"{name} must be above {above:g}, got {shown}")
    if value > most:
        raise UsageError(f"{name} must be at most {most:.10g}, got {shown}")
