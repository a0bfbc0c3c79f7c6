"""Full steps in which every rank evaluates everything, as the warm-up of most published methods."""

from __future__ import annotations

import torch

from ..denoiser.evaluation import Evaluation
from ..report.speedup import RowPartition
from ..sharding.ranks import Forward
from ..strategies.evaluator import BranchEvaluator


class ReplicatingEvaluator(BranchEvaluator):
    """Evaluates calls on every rank by itself; only status is told."""

    def evaluate(
        self, evaluation: Evaluation, forward: Forward | None = None, stage: Forward | None = None
    ) -> torch.Tensor:
        self.partition = self.partition or RowPartition(evaluation.rows, evaluation.rows, branches=evaluation.branches)
        return self.replicate(evaluation, forward)

    def evaluate_extra(self, evaluation: Evaluation) -> torch.Tensor:
        return evaluation.run()
