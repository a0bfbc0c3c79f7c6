"""What stands in for the progress bar of a pipeline whose steps somebody else is told of."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sized
from typing import Any, Self

from .protocol import OnStep


@contextlib.contextmanager
def steps_told_to(pipe: Any, on_step: OnStep | None) -> Iterator[None]:
    """Let a pipeline tell its steps, if anybody listens; an attribute of this one object, gone afterwards."""
    if on_step is None:
        yield
        return
    pipe.progress_bar = functools.partial(_StepBar, on_step)
    try:
        yield
    finally:
        del pipe.progress_bar


class _StepBar:
    """Stands in for the tqdm bar of a stock pipeline: around its steps, or around what it iterates over.

    Args:
        on_step: Is told of every step.
        iterable: What the pipeline iterates over, as the steps that it takes.
        total: Number of steps, where it updates the bar itself.
    """

    def __init__(self, on_step: OnStep, iterable: Sized | None = None, total: int = 0) -> None:
        self._iterable = iterable
        self._total, self._done, self._on_step = total if iterable is None else len(iterable), 0, on_step

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        items: Any = self._iterable
        for item in items:
            yield item
            self.update()

    def update(self, steps: int = 1) -> None:
        self._done += steps
        self._on_step(self._done, self._total)

    def set_description(self, *_: Any, **__: Any) -> None:
        """What is shown beside steps is not told."""

    def close(self) -> None:
        """Nothing is shown that would remain."""
