"""Condition-based partitioning: each guidance branch on its own ranks (Jung et al. 2026, Sec. 3.1)."""

from __future__ import annotations

import torch

from ..denoiser.evaluation import Evaluation
from ..report.speedup import RowPartition
from .base import Answer, RunContext, Strategy
from .evaluator import BranchEvaluator
from .steps.full import FullStep


class CfgStrategy(Strategy):
    """Every rank evaluates its rows of one branch; one all-gather per step gives all ranks the whole prediction."""

    name = "cfg"
    measures_drift = False

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self.evaluator = BranchEvaluator(context.channel, context.timeline, context.steps, context.groups)
        self.full = FullStep(self.evaluator, self.measures_drift)

    @property
    def partition(self) -> RowPartition | None:
        return self.evaluator.partition

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        self.channel.begin_step(step, self.kind(step), evaluation.branches > 1)
        return self.full.run(evaluation)

    def predict_extra(self, evaluation: Evaluation) -> torch.Tensor:
        return self.evaluator.evaluate_extra(evaluation)
