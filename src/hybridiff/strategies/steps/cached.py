"""Cached steps: nothing runs; every rank answers with the last predictions, and the next full step corrects the errors.

Holding a prediction over steps is step caching (as in TeaCache, arXiv 2411.19108). New here is the correction in
hindsight: a full step shows what the cached steps before it should have predicted, and moves the sample to where it
would be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...denoiser.evaluation import Evaluation
from ...numerics.estimate import OSCILLATES, ErrorEstimate
from ...numerics.hindsight import Hindsight
from ...numerics.repeats import Repeats
from ..base import Answer
from ..evaluator import BranchEvaluator
from .executor import StepExecutor


class CachedStep(StepExecutor):
    """The cached steps of one run; the same on every rank, as all have the same predictions, so nothing is sent.

    Args:
        evaluator: Evaluates calls on all ranks.
        hindsight: Says what cached steps got wrong, and makes up for it.
        places: Where steps lie in time (`Sensitivity.places`).
        estimate: Where what the cached steps leave wrong is added up; None where nobody asks.
    """

    def __init__(
        self,
        evaluator: BranchEvaluator,
        hindsight: Hindsight,
        places: Sequence[float] | None = None,
        estimate: ErrorEstimate | None = None,
    ) -> None:
        super().__init__(evaluator)
        self._hindsight, self._estimate = hindsight, estimate
        self._repeats = Repeats(places)
        self._latest: torch.Tensor | None = None  # prediction of the last full step
        self._latest_step = 0
        self._answered: list[tuple[int, torch.Tensor]] = []  # cached steps since then
        self._measured: Sequence[torch.Tensor] = ()

    def run(self, evaluation: Evaluation, step: int) -> Answer:
        assert self._latest is not None
        self._answered.append((step, self._latest))
        return Answer(self._latest.clone())  # the pipeline may do with its own what it likes

    def observe(self, step: int, prediction: torch.Tensor) -> None:
        if self._latest is not None and len(prediction) < len(self._latest):
            if not self._answered:
                return  # nothing to make up for, and guidance may come back
            # Guidance has ended: the conditional branch goes on alone. The best guess is that the difference between
            # the branches would have stayed as it was; then both err alike, whatever the guidance scale.
            self._hindsight.keep_last_rows(len(prediction))
            self._answered = [(cached, answered[-len(prediction) :]) for cached, answered in self._answered]
            self._estimate = None  # all further steps are full
        before, distance = self._latest, self._repeats.distance(self._latest_step, step)
        is_guided = before is not None and len(before) == len(prediction)
        self._latest = self._hindsight.look_back(step, prediction, self._answered, is_guided)
        self._latest_step, self._answered = step, []
        if self._estimate is not None and before is not None and is_guided:
            self._measure(self._estimate, before, distance)

    def _measure(self, estimate: ErrorEstimate, before: torch.Tensor, distance: float) -> None:
        assert self._latest is not None
        errors = self._hindsight.errors
        if errors:
            estimate.close_gap(list(errors), list(errors.values()), self._hindsight.pairs(self._repeats))
        speeds = estimate.speeds(self._latest, before, distance)
        speeds = self._repeats.observe(self._latest, before, distance, speeds)
        self._measured = (speeds, estimate.errors(speeds), estimate.rounding(self._latest))

    def measure(self) -> Sequence[torch.Tensor]:
        """How fast the guided predictions change, the estimated error so far, and what rounding does: (B,) each."""
        return self._measured

    def notes(self) -> list[str]:
        return [OSCILLATES] if self._estimate is not None and self._estimate.oscillates else []

    def correct(self, prediction: torch.Tensor) -> torch.Tensor:
        """The prediction of a full step just observed, changed so that it makes up for the cached steps before it."""
        return self._hindsight.correct(prediction)
