"""The stock pipeline: every rank evaluates everything."""

from __future__ import annotations

from ..denoiser.evaluation import Evaluation
from ..numerics.guidance import discrepancy_between
from .base import Answer, RunContext, Strategy
from .evaluator import BranchEvaluator


class SerialStrategy(Strategy):
    """Evaluate the whole batch as the stock pipeline does, and record the discrepancy."""

    name = "serial"
    shares_rows = False

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self._evaluator = BranchEvaluator(context.channel, context.timeline, context.steps)

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        self.channel.begin_step(step, self.kind(step), evaluation.branches > 1)
        prediction = self._evaluator.replicate(evaluation)
        if evaluation.branches == 1:
            self._evaluator.read_status()
            return Answer(prediction)
        return Answer(prediction, self._evaluator.read_status(discrepancy_between(prediction, evaluation.branches)))
