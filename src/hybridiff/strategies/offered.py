"""Strategies of other packages, found by entry points, and settings of their own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from ..config import STRATEGY_GROUP
from ..errors import UsageError
from ..utils.checked import check_fields
from ..utils.names import offered, require_known
from . import STRATEGIES
from .base import Strategy

T = TypeVar("T")


def find_strategy(name: str) -> type[Strategy]:
    """The class of a strategy, built in or offered by an installed package.

    Raises:
        UsageError: the package cannot be imported, or offers something else.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    point = offered(STRATEGY_GROUP)[name]
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise UsageError(f"strategy {name!r} cannot be loaded from {point.value}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise UsageError(f"{point.value} is not a strategy: it must be a subclass of hybridiff.strategies.Strategy")
    return found


def make_settings(kind: type[T], given: dict[str, Any]) -> T:
    """Settings of such a strategy, from what the user gave by name.

    Args:
        kind: Their frozen dataclass; limits stand in the metadata of its fields, as those of `ParallelConfig` do.
        given: What was given; the rest are defaults.

    Raises:
        UsageError: a name is unknown, or a value is of the wrong type or out of range.
    """
    for name in given:
        require_known("setting of the strategy", name, [entry.name for entry in fields(kind)])  # type: ignore[arg-type]
    settings = kind(**given)
    check_fields(settings)
    return settings
