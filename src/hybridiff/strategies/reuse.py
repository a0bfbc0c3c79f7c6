"""Reuse: between full steps only the outer stage runs, on a forecast of the inner one.

Step caching (DeepCache, arXiv 2312.00858; TaylorSeer, arXiv 2503.06923) married to condition-based partitioning:
guidance is fresh at every step, and the only message is the gather of the predictions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..config import ParallelConfig
from ..denoiser.blocks import Boundary
from ..denoiser.call import Evaluation
from ..denoiser.cut import StagePlan, choose_share
from ..forecast import ORDERS, Forecast
from ..presets import fixed_schedule, reuse_share
from ..switching import FixedPolicy, StepKind
from .base import Answer, RunContext
from .staged import StagedStrategy


class ReuseStrategy(StagedStrategy):
    """Partitioned throughout; each rank forecasts its own branch's inner result between full steps.

    Runs on one device too, on both branches as a batch, so that saved work and added devices can be told apart.
    """

    name = "reuse"

    def __init__(self, context: RunContext) -> None:
        super().__init__(context, _policy(context.config, context.steps))
        order = ORDERS[context.config.forecast]
        self._forecasts = {rank: Forecast(order) for rank in self.comm.members}

    @classmethod
    def check_call(cls, config: ParallelConfig, pipe: Any, steps: int) -> None:
        _policy(config, steps)

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        if step == 0:
            self._prepare(evaluation)
        self._latest = step
        self.channel.begin_step(self.kind(step))
        return super().predict(evaluation, step)

    def _choose(self, plans: Sequence[StagePlan]) -> StagePlan:
        share = self.config.outer_share
        return choose_share(plans, reuse_share(self.context.pipe) if share is None else share)

    def _evaluate_share(self, evaluation: Evaluation, rank: int, share: slice) -> torch.Tensor:
        step = self._latest
        if self._is_off or evaluation.branches == 1:
            return evaluation.run(share)
        if self.kind(step) is StepKind.REUSE:
            return self._staged.run_outer(evaluation, share, exchange=lambda down: self._inner(rank, step, down))
        prediction = self._staged.run_whole(evaluation, share, capture=True)
        self._forecasts[rank].observe(step, self._staged.kept(self._staged.down, self._staged.up))
        return prediction

    def _inner(self, rank: int, step: int, down: Boundary) -> Boundary:
        return self._staged.restored(down, self._forecasts[rank].at(step))


def _policy(config: ParallelConfig, steps: int) -> FixedPolicy:
    tau1, tau2, interval = fixed_schedule(steps, config.tau1, config.tau2, config.full_interval)
    return FixedPolicy(tau1, tau2, interval, StepKind.REUSE, steps)
