"""At which timestep each step of a run evaluates its network."""

from __future__ import annotations

import torch

from ..strategies import RunContext


class Timesteps:
    """Those of the steps of a strategy.

    Args:
        context: What the strategy works with; its pipeline is one whose first timestep is known.
    """

    def __init__(self, context: RunContext) -> None:
        self._all: torch.Tensor = context.scheduler.timesteps
        assert context.first_timestep is not None
        distances = (self._all.float() - context.first_timestep).abs()
        first = int((distances == distances.min()).nonzero()[0])  # image to image begins later
        self._first = first + context.first_step
        self._steps = context.steps

    def at(self, step: int) -> torch.Tensor:
        """The timestep of a step, 0-d; of the first or the last one where there is no such step."""
        return self._all[self._first + min(max(step, 0), self._steps - 1)]
