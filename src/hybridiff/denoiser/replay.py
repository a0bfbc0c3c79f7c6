"""Pipelines that call their denoiser once a branch: the later calls of a step are foreseen at its first one.

The conditional call comes first, and what the other one is given beside it are the same objects at every step. So at
the first call of a step all branches can be evaluated, each on its ranks; the later calls are compared with what was
foreseen, and answered with what is there already.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .call import DenoiserCall
from .deferred import computed

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Generator, torch.Tensor)
"""Things that a call may be given which no call changes; that tensors stay as they are, is looked after."""


@dataclass(frozen=True)
class CallDifference:
    """What a later call of a step is given that the first one is not.

    Attributes:
        own: Arguments by name, as they were; they stay the same at every step.
        absent: Names of arguments that the first call has and this one has not.
    """

    own: dict[str, Any]
    absent: frozenset[str]

    @classmethod
    def between(cls, first: DenoiserCall, later: DenoiserCall) -> CallDifference:
        """What tells a later call from the first one of its step."""
        own = {
            name: snapshot(computed(value))
            for name, value in later.arguments.items()
            if name not in first.arguments or not same(first.arguments[name], value)
        }
        return cls(own, frozenset(first.arguments.keys() - later.arguments.keys()))

    def foresee(self, first: DenoiserCall) -> DenoiserCall:
        """The later call of a step, from its first one."""
        kept = {name: value for name, value in first.arguments.items() if name not in self.absent}
        return replace(first, arguments=kept | self.own)


def is_foreseen(foreseen: DenoiserCall, versions: Sequence[int], call: DenoiserCall) -> bool:
    """Whether a call is what was foreseen; waits for the device only where an argument is another object.

    Args:
        foreseen: What was foreseen.
        versions: Its `tensor_versions` when it was evaluated.
        call: What was called.
    """
    if call.network is not foreseen.network or versions != tensor_versions(foreseen.arguments):
        return False
    return same(foreseen.arguments, call.arguments)


def tensor_versions(arguments: Mapping[str, Any]) -> list[int]:
    """How often the tensors that a call is given have been changed in place."""
    return [0 if one.is_inference() else one._version for one in tensors_in(arguments)]  # those do not count


def unknown_things(call: DenoiserCall) -> list[str]:
    """Arguments whose state may change between the calls of a step, such as caches of keys and values."""
    return [
        name
        for name, value in call.arguments.items()
        if any(not isinstance(leaf, _PLAIN) and not hasattr(leaf, "__array__") for leaf in leaves(value))
    ]


def snapshot(value: Any) -> Any:
    """The same tensors in containers of our own: pipelines change theirs between calls."""
    if isinstance(value, Mapping):
        return {key: snapshot(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(snapshot(item) for item in value)
    return value


def same(one: Any, other: Any) -> bool:
    """Whether two arguments are the same, tensors and arrays by value."""
    if one is other:
        return True
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return alike and bool(torch.equal(one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if type(one) is not type(other):
        return False
    return bool(np.array_equal(one, other)) if hasattr(one, "__array__") else bool(one == other)


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors that lie in an argument, however deep in its containers."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, torch.Tensor)]


def leaves(value: Any) -> Iterator[Any]:
    """What lies in an argument, however deep in its containers."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value
