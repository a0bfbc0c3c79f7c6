"""The parameters of a network's forward, read once a function, as reading them takes longer than the rest of a call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MethodType
from typing import Any
from weakref import WeakKeyDictionary

_KEPT: WeakKeyDictionary[Any, ForwardSignature] = WeakKeyDictionary()
"""By function of the class, which all networks of it share; nothing here keeps a network alive."""


@dataclass(frozen=True)
class ForwardSignature:
    """What a forward can be given.

    Attributes:
        names: Of its parameters that can be given by name, in order.
        required: Those without a default.
        positional: How many of the first ones can be given by place.
        takes_others: Whether it takes arguments of any name.
        is_named: Whether it takes nothing but what it has a name for.
    """

    names: tuple[str, ...]
    required: frozenset[str]
    positional: int
    takes_others: bool
    is_named: bool

    @property
    def takes_return_dict(self) -> bool:
        """Whether it can be told to answer with a tuple."""
        return self.takes_others or "return_dict" in self.names

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
        """Arguments by name, in order of the parameters; None where they do not fit."""
        given = dict(zip(self.names, args, strict=False))
        fits = len(args) <= self.positional and not given.keys() & kwargs.keys()
        if not fits or not (self.takes_others or kwargs.keys() <= set(self.names)):
            return None
        given.update(kwargs)
        if not self.required <= given.keys():
            return None
        ordered = {name: given[name] for name in self.names if name in given}
        return ordered | given


def signature_of(forward: Callable[..., Any]) -> ForwardSignature:
    """The signature of a forward, of what hooks and compilers have wrapped around it too."""
    function: Any = forward
    while not isinstance(function, MethodType) and not hasattr(function, "__signature__"):
        if not hasattr(function, "__wrapped__"):
            break
        function = function.__wrapped__
    owner = function.__func__ if isinstance(function, MethodType) else function
    kept = _KEPT.get(owner)
    if kept is None:
        kept = _KEPT[owner] = _read(function)
    return kept


def _read(function: Callable[..., Any]) -> ForwardSignature:
    parameters = inspect.signature(function).parameters.values()
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    return ForwardSignature(
        names=tuple(one.name for one in named),
        required=frozenset(one.name for one in named if one.default is one.empty),
        positional=sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in named),
        takes_others=any(one.kind is one.VAR_KEYWORD for one in parameters),
        is_named=all(one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD) for one in parameters),
    )
