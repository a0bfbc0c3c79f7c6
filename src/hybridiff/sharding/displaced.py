"""Displaced messages: within a network ranks go on with what the others said one evaluation earlier.

The displaced patches of DistriFusion (Li et al. 2024), and their form for sequences: approximate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch

from ..distributed.comm import Heard
from .group import ShardGroup


@dataclass
class _Said:
    """A message that was begun: what this rank said, and how to hear all ranks."""

    own: torch.Tensor
    hear: Heard

    def is_like(self, tensor: torch.Tensor) -> bool:
        return self.own.shape == tensor.shape and self.own.dtype is tensor.dtype


@dataclass
class _Call:
    """A call of a network that comes again at each step.

    Attributes:
        times: It came before.
        place: Messages of the running evaluation so far.
        said: In the latest evaluation, at each place.
        numbers: Of this rank in the latest evaluation, by place, where the others' are changed alike.
        lengths: See `ShardGroup.lengths`.
    """

    times: int = 0
    place: int = 0
    said: list[_Said] = field(default_factory=list)
    numbers: dict[int, torch.Tensor] = field(default_factory=dict)
    lengths: dict[str, tuple[int, ...]] = field(default_factory=dict)


class DisplacedGroup(ShardGroup):
    """A rank of a group that waits for nobody within a network once it has warmed up.

    Its own part is of now. What the others say of theirs is of the evaluation before, of the same call and at the same
    place; this rank's is on its way to them meanwhile. Outputs (`join`) are of now.

    Args:
        group: The ranks, and how they talk.
        warm_up: The last evaluation of a call, from 0, in which all is of now.
    """

    def __init__(self, group: ShardGroup, warm_up: int) -> None:
        super().__init__(group.index, group.count)
        self._group, self._warm_up = group, warm_up
        self._calls: dict[tuple[Hashable, int], _Call] = {}  # by form, and which one of that form in its step
        self._seen = Counter[Hashable]()  # forms of the step so far
        self._call = _Call()  # that runs
        self._is_displaced = False  # what was heard last

    @property
    def may_exchange(self) -> bool:
        return not self._is_kept  # keys of all heads are kept

    def begin_step(self) -> None:
        """Calls of each form are counted from the first one again."""
        self._seen.clear()

    def begin(self, form: Hashable) -> None:
        key = form, self._seen[form]
        self._seen[form] += 1
        if key in self._calls:
            self._calls[key].times += 1
        self._call = self._calls.setdefault(key, _Call())
        self._call.place, self._lengths = 0, self._call.lengths

    def start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        self._is_displaced = False
        if not self._is_kept:
            return self._group.start_gather(tensor, shapes)
        said = _Said(tensor, self._group.gather_in_background(tensor, shapes))
        before = self._put_down(said)
        self._is_displaced = before is not None and before.is_like(tensor)
        parts = (before if before is not None and self._is_displaced else said).hear()
        parts[self.index] = tensor
        return lambda: parts

    def changed_alike(self, said: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        if not self._is_kept:
            return said
        numbers, place = self._call.numbers, self._call.place
        before, numbers[place] = numbers.get(place), own
        if before is None or not self._is_displaced:
            return said
        changed = said + (own - before)
        changed[self.index] = own
        return changed

    def all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._group.all_to_all(tensor)

    def join(self, place: str, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return self._one_after_other(self._group.start_gather, place, tensor, dim)()

    def _put_down(self, said: _Said) -> _Said | None:
        """What was said here in the evaluation before."""
        call = self._call
        before = call.said[call.place] if call.place < len(call.said) else None
        call.said[call.place : call.place + 1] = [said]
        call.place += 1
        return before

    @property
    def _is_kept(self) -> bool:
        """Whether messages of the running evaluation are kept for the next one."""
        return self._call.times >= self._warm_up

    def _tell(self, number: int) -> list[int]:
        return self._group._tell(number)

    def _start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        return self._group._start_gather(tensor, shapes)

    def _all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._group._all_to_all(tensor)
