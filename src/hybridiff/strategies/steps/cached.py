"""Cached steps: nothing runs; every rank answers with the last predictions, and the next full step corrects the errors.

Holding a prediction over steps is step caching (as in TeaCache, arXiv 2411.19108). New here is the correction in
hindsight: a full step shows what the cached steps before it should have predicted, and moves the sample to where it
would be.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...denoiser.call import Evaluation
from ...numerics.estimate import ErrorEstimate
from ...numerics.extrapolation import Extrapolation
from ...numerics.reaction import Reaction
from ...numerics.repeats import Repeats
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
        reaction: What the network makes of a sample that cached steps have displaced.
        estimate: Where what the cached steps leave wrong is added up; None where nobody asks.
    """

    def __init__(
        self,
        evaluator: BranchEvaluator,
        correction: float,
        sensitivity: Sensitivity,
        reaction: Reaction,
        estimate: ErrorEstimate | None = None,
    ) -> None:
        super().__init__(evaluator)
        self._correction, self._sensitivity = correction, sensitivity
        self._reaction, self._estimate = reaction, estimate
        self._repeats = Repeats(sensitivity.places)
        self._hindsight = Extrapolation(order=3, places=sensitivity.places)
        self._latest: torch.Tensor | None = None  # prediction of the last full step
        self._latest_step = 0
        self._answered: list[tuple[int, torch.Tensor]] = []  # cached steps since then
        self._errors: dict[int, torch.Tensor] = {}  # what those before it got wrong
        self._pull: torch.Tensor | None = None  # what the displaced sample added to the latest prediction
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
        self._hindsight.observe(step, (prediction,))
        if before is not None and len(before) == len(prediction):
            prediction = self._without_pull(step, prediction)
        self._latest, self._latest_step = prediction, step
        self._errors, self._answered = self._seen_errors(), []
        if self._estimate is not None and before is not None and len(before) == len(prediction):
            self._measure(self._estimate, before, distance)

    def _seen_errors(self) -> dict[int, torch.Tensor]:
        """By how much each cached step since the last full one was off, as hindsight says."""
        better = {cached: self._hindsight.at(cached)[0].float() for cached, _ in self._answered}
        return {cached: better[cached] - answered.float() for cached, answered in self._answered}

    def _without_pull(self, step: int, prediction: torch.Tensor) -> torch.Tensor:
        """What the network would have predicted, had the cached steps before not displaced the sample."""
        self._pull = None
        gains = {cached: self._correction * self._sensitivity.gain(cached, step) for cached, _ in self._answered}
        if not any(gains.values()):
            return prediction
        errors = self._seen_errors()
        correction = torch.stack([gain * errors[cached] for cached, gain in gains.items()]).sum(0)
        weight = sum(gain * self._hindsight.latest_weight(cached) for cached, gain in gains.items())
        self._pull = self._reaction.pull(step, correction, weight)
        undisturbed = (prediction.float() - self._pull).to(prediction.dtype)
        self._hindsight.observe(step, (undisturbed,))
        return undisturbed

    def _measure(self, estimate: ErrorEstimate, before: torch.Tensor, distance: float) -> None:
        assert self._latest is not None
        if self._errors:
            pairs = [self._repeats.pair(self._hindsight, cached) for cached in self._errors]
            estimate.close_gap(list(self._errors), list(self._errors.values()), pairs)
        speeds = estimate.speeds(self._latest, before, distance)
        speeds = self._repeats.observe(self._latest, before, distance, speeds)
        self._measured = (speeds, estimate.errors(speeds))

    def measure(self) -> Sequence[torch.Tensor]:
        """How fast the guided predictions change, and the estimated error so far: (B,) each."""
        return self._measured

    def correct(self, step: int, prediction: torch.Tensor) -> torch.Tensor:
        """The prediction of a full step just observed, changed so that it makes up for the cached steps before it.

        In hindsight a cached step j should have predicted what a cubic through the latest full steps says there. That
        difference, times how far j moves the sample relative to this step, moves the sample to where it would be. What
        the network added because the sample was displaced is taken out.
        """
        corrected = prediction.float()
        if self._pull is not None:
            corrected = corrected - self._pull
        errors, self._errors, self._pull = self._errors, {}, None
        for cached, error in errors.items():
            gain = self._correction * self._sensitivity.gain(cached, step)
            if gain:
                corrected = corrected + gain * error
        return corrected.to(prediction.dtype)
