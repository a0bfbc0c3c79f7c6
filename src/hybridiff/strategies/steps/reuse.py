"""Reuse steps: only the outer stage runs, on an extrapolation of the inner one.

Step caching (DeepCache, arXiv 2312.00858; TaylorSeer, arXiv 2503.06923) married to condition-based partitioning:
guidance is fresh at every step, and the only message is the all-gather of the predictions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...denoiser.blocks import Boundary
from ...denoiser.evaluation import Evaluation
from ...denoiser.stages import StagedDenoiser
from ...numerics.extrapolation import Extrapolation
from ...numerics.guidance import discrepancy_between
from ..base import Answer
from ..evaluator import BranchEvaluator
from .executor import StepExecutor


class ReuseStep(StepExecutor):
    """The reuse steps of one run; each rank extrapolates the inner result of its own branch, or of its part of that.

    Args:
        evaluator: Evaluates calls on all ranks.
        staged: The network, split.
        places: Where steps lie in time (`Sensitivity.places`).
    """

    def __init__(
        self, evaluator: BranchEvaluator, staged: StagedDenoiser, places: Sequence[float] | None = None
    ) -> None:
        super().__init__(evaluator)
        self.staged: StagedDenoiser = staged
        self._channel = evaluator.channel
        self._features = {rank: Extrapolation(order=1, places=places) for rank in evaluator.channel.comm.local_ranks}

    def run(self, evaluation: Evaluation, step: int) -> Answer:
        prediction = self.evaluator.evaluate(evaluation, self._run_traced, self._run_outer)
        said = self.evaluator.read_status(discrepancy_between(prediction, evaluation.branches))
        return Answer(prediction, said)

    def run_full(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        with self.evaluator.timeline.span(rank, "whole network, own branch", "stage"):
            prediction = self.staged.run_whole(evaluation, rows, rank)
        self._features[rank].observe(self._channel.step, self.staged.feature(self.staged.down, self.staged.up))
        return prediction

    def _run_traced(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        with self.evaluator.timeline.span(rank, "outer stage, own branch", "stage"):
            return self._run_outer(evaluation, rank, rows)

    def _run_outer(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        def inner(down: Boundary) -> Boundary:
            return self.staged.result(down, self._features[rank].at(self._channel.step))

        return self.staged.run_outer(evaluation, rows, inner, rank)
