"""Full steps: every rank evaluates the whole network on its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ...denoiser.evaluation import Evaluation
from ...numerics.guidance import discrepancy_between, drift
from ...sharding.ranks import Forward
from ..base import Answer
from ..evaluator import BranchEvaluator

Learn = Callable[[torch.Tensor], Sequence[torch.Tensor]]


class FullStep:
    """The full steps of one run.

    Args:
        evaluator: Evaluates calls on all ranks.
        measures_drift: Whether to measure how far predictions moved since the full step before, as well.
    """

    def __init__(self, evaluator: BranchEvaluator, measures_drift: bool = False) -> None:
        self._evaluator = evaluator
        self._measures_drift = measures_drift
        self._before: torch.Tensor | None = None

    def run(self, evaluation: Evaluation, forward: Forward | None = None, learn: Learn | None = None) -> Answer:
        """Answer a step, in one branch or two; what is measured of it is read by whoever asks for it.

        Args:
            evaluation: The call.
            forward: What a rank runs on its rows; the whole network unless given.
            learn: Takes in the prediction of all rows; what it returns is read with the rest. Without it nothing is
                measured of a call that has one branch only.
        """
        prediction = self._evaluator.evaluate(evaluation, forward)
        if evaluation.branches == 1 and learn is None:
            self._evaluator.read_status()
            return Answer(prediction)
        scalars = [discrepancy_between(prediction, evaluation.branches)]
        if self._measures_drift:
            before = torch.full_like(prediction, torch.nan) if self._before is None else self._before
            scalars.append(drift(prediction, before).reshape(1))
            self._before = prediction.clone()  # the pipeline may do with its own what it likes
            scalars += learn(self._before) if learn is not None else ()
        return Answer(prediction, self._evaluator.read_status(torch.cat(scalars)))
