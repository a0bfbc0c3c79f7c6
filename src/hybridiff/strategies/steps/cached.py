"""Cached steps: nothing runs; every rank answers with the last predictions, and the next full step corrects the errors.

Holding a prediction over steps is step caching (as in TeaCache, arXiv 2411.19108). New here is the correction in
hindsight: a full step shows what the cached steps before it should have predicted, and moves the sample to where it
would be.
"""

from __future__ import annotations

import torch

from ...denoiser.call import Evaluation
from ...numerics.extrapolation import Extrapolation
from ...numerics.sensitivity import Sensitivity
from ..base import Answer
from ..evaluator import BranchEvaluator
from .executor import StepExecutor


class CachedStep(StepExecutor):
    """The cached steps of one run; the same on every rank, as all have the same predictions, so nothing is sent.

    Args:
        evaluator: Evaluates calls on all ranks.
        correction: Share of the cached steps' errors that the next full step makes up for.
        sensitivity: How far each prediction moves the sample.
    """

    def __init__(self, evaluator: BranchEvaluator, correction: float, sensitivity: Sensitivity) -> None:
        super().__init__(evaluator)
        self._latest: torch.Tensor | None = None  # prediction of the last full step
        self._hindsight = Extrapolation(order=3)
        self._correction = correction
        self._sensitivity = sensitivity
        self._answered: list[tuple[int, torch.Tensor]] = []  # cached steps since then

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
        self._latest = prediction
        self._hindsight.observe(step, (prediction,))

    def correct(self, step: int, prediction: torch.Tensor) -> torch.Tensor:
        """The prediction of a full step just observed, changed so that it makes up for the cached steps before it.

        In hindsight a cached step j should have predicted what a cubic through the latest full steps says there. That
        difference, times how far j moves the sample relative to this step, moves the sample to where it would be.
        """
        corrected = prediction.float()
        for cached, answered in self._answered:
            gain = self._correction * self._sensitivity.gain(cached, step)
            if gain:
                (better,) = self._hindsight.at(cached)
                corrected = corrected + gain * (better.float() - answered.float())
        self._answered = []
        return corrected.to(prediction.dtype)
