"""Block hooks: run, skip, inject or capture, so that one stage of a network runs inside its own forward."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.hooks import ModelHook

Boundary = tuple[torch.Tensor, ...]
"""The tensors that cross a split, in the order in which a block returns them."""


OUTER = 0
"""Stages are numbered from the outer one, which has the first and the last layers; each has the next in its middle."""


class StageDone(Exception):
    """An inner stage has its result: leaves the network's forward early."""


@dataclass
class StageState(threading.local):
    """What the block hooks of one network share during one forward; every thread, which plays a rank, has its own.

    Boundary k lies between the stages k and k + 1.

    Attributes:
        rank: Whose forward it is.
        stage: The stage that runs; None runs the whole network.
        capturing: Whether a whole forward keeps copies of the boundaries.
        rows: Rows of the forward, for the stand-ins of skipped blocks.
        downs: Inward tensors of each boundary: captured, or to be injected.
        ups: Outward ones: captured, or to be injected.
        inner: Stands in for the inner stages where the outer one runs alone: takes its fresh `down`, returns `up`.
    """

    rank: int = 0
    stage: int | None = None
    capturing: bool = False
    rows: int = 0
    downs: dict[int, Boundary] = field(default_factory=dict)
    ups: dict[int, Boundary] = field(default_factory=dict)
    inner: Callable[[Boundary], Boundary] | None = None


@dataclass
class BlockHook(ModelHook):
    """Runs a block, or skips it in the forwards of other stages.

    Attributes:
        state: Shared by the hooks of a network.
        stage: The stage that the block belongs to.
        is_entry: The last block of its stage before the next one; its output is the boundary `down`.
        is_exit: The last block of its stage; its output is the boundary `up`.
    """

    state: StageState
    stage: int
    is_entry: bool = False
    is_exit: bool = False
    _shapes: dict[int, Any] = field(default_factory=dict, repr=False)  # by rank: those with parts differ

    def __post_init__(self) -> None:
        super().__init__()

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Replaces the block's forward (see `diffusers.hooks.ModelHook`)."""
        if self.state.stage in (None, self.stage):
            return self._run(*args, **kwargs)
        return self._skip(self.state.stage)

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        output = self.fn_ref.original_forward(*args, **kwargs)
        state = self.state
        if state.capturing:
            self._shapes[state.rank] = shapes_only(output)
        if self.is_entry:
            self._enter(output)
        if self.is_exit:
            if state.stage is not None:
                state.ups[self.stage - 1] = tensors_of(output)
                raise StageDone
            if state.capturing:
                state.ups[self.stage - 1] = copies(output)
        return output

    def _enter(self, output: Any) -> None:
        state = self.state
        if state.stage is not None or state.capturing:
            state.downs[self.stage] = copies(output)
        if state.stage == OUTER:
            assert state.inner is not None
            state.ups[OUTER] = state.inner(state.downs[OUTER])

    def _skip(self, running: int) -> Any:
        # A stage runs only after a whole forward of the same rank has shown the blocks' shapes.
        stand_in = empty_rows(self._shapes[self.state.rank], self.state.rows)
        if self.is_entry and self.stage == running - 1:
            return replace_tensors(stand_in, self.state.downs[self.stage])
        if self.is_exit and self.stage == running + 1:
            return replace_tensors(stand_in, self.state.ups[running])
        return stand_in


def map_tensors(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A block's output with every tensor changed; tuples and None keep their places."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(map_tensors(item, change) for item in value)
    return value


def tensors_of(output: Any) -> Boundary:
    """The tensors of a block's output: one, or a tuple of them (None left out)."""
    items = output if isinstance(output, tuple) else (output,)
    return tuple(item for item in items if item is not None)


def replace_tensors(output: Any, tensors: Boundary) -> Any:
    """A block's output with other tensors in its places; the inverse of `tensors_of`."""
    waiting = iter(tensors)
    return map_tensors(output, lambda _: next(waiting))


def copies(output: Any) -> Boundary:
    """Copies of a block's tensors: pipelines with adapters add to activations in place."""
    return tuple(tensor.clone() for tensor in tensors_of(output))


def shapes_only(output: Any) -> Any:
    """A block's output without what is in it, for `empty_rows`."""
    return map_tensors(output, lambda tensor: tensor.new_zeros(()).expand(tensor.shape))


def empty_rows(shapes: Any, rows: int) -> Any:
    """What a skipped block returns, with so many rows: nobody reads more than its shape (skip connections)."""
    return map_tensors(shapes, lambda tensor: tensor.new_empty((rows, *tensor.shape[1:])))
