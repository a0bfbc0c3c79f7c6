"""A scheduler that is watched while a pipeline runs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[..., Any]


class AroundSteps:
    """Something around each step of a scheduler, as long as this context lasts.

    Args:
        scheduler: Copies of it step without.
        around: Called in place of its `step` with that one and its arguments; returns what it returns.
    """

    def __init__(self, scheduler: Any, around: Step) -> None:
        self._scheduler = scheduler
        self._step = _SeenStep(scheduler.step, around)
        self._earlier = vars(scheduler).get("step")  # somebody else's

    def __enter__(self) -> None:
        self._scheduler.step = self._step

    def __exit__(self, *_: object) -> None:
        vars(self._scheduler).pop("step", None)
        if self._earlier is not None:
            self._scheduler.step = self._earlier


class SchedulerWatch(AroundSteps):
    """Sees what a pipeline gives its scheduler, and when a step ends, for the length of a call.

    Args:
        scheduler: The pipeline's own; copies that the pipeline makes of it step unseen.
        show: Called with what each step is given, (rows, ...), before it.
        end: Called after each step.
    """

    def __init__(self, scheduler: Any, show: Callable[[torch.Tensor], None], end: Callable[[], None]) -> None:
        self._show, self._end = show, end
        super().__init__(scheduler, self._watch)

    def _watch(self, step: Step, *args: Any, **kwargs: Any) -> Any:
        given = args[0] if args else kwargs.get("model_output")
        if isinstance(given, torch.Tensor):
            self._show(given)
        stepped = step(*args, **kwargs)
        self._end()
        return stepped


class _SeenStep:
    """Stands in for a scheduler's `step`, whose signature pipelines inspect; copied with it, it is the stock one."""

    def __init__(self, own: Step, around: Step) -> None:
        functools.update_wrapper(self, own)
        self._own, self._around = own, around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._around(self._own, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self._own, memo)  # a method of the copy, which is in the memo already
