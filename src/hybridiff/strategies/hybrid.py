"""Condition-based partitioning that switches to an asynchronous pipeline (Jung et al. 2026, Sec. 3.2-3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..config import ParallelConfig
from ..denoiser.call import Evaluation
from ..denoiser.cut import StagePlan, choose_balanced
from ..presets import fixed_schedule, published_settings
from ..switching import FixedPolicy, Phase, PublishedPolicy, StepKind, SwitchPolicy
from .base import Answer, RunContext
from .carry import CarriedExchange
from .exchange import Exchange
from .published import PublishedExchange
from .staged import StagedStrategy

EXCHANGES: dict[str, type[Exchange]] = {"published": PublishedExchange, "carry": CarriedExchange}

LEAST_STEPS = 3
"""A run has to have a full step or two before a pipelined one; with fewer steps all are full."""


class HybridStrategy(StagedStrategy):
    """Partitioned steps, and in between pipelined ones in which each rank computes one stage of one branch."""

    name = "hybrid"

    def __init__(self, context: RunContext) -> None:
        super().__init__(context, _policy(context.pipe, context.config, context.steps))
        self._exchange = EXCHANGES[context.config.parallel_guidance](context, self._staged)
        self._is_open = False

    @classmethod
    def check_call(cls, config: ParallelConfig, pipe: Any, steps: int) -> None:
        _policy(pipe, config, steps)

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        if step == 0:
            self._prepare(evaluation)
        self._latest = step
        if evaluation.branches == 1 and self._policy.kind(step) is StepKind.PIPELINED:
            self._policy.tau2 = step - 1  # guidance ended early, and the parallel stage with it
        self.channel.begin_step(self.kind(step))
        if self.kind(step) is StepKind.PIPELINED:
            return self._exchange.predict(evaluation, step)
        answer = super().predict(evaluation, step)
        if not self._is_off and evaluation.branches == 2:
            self._learn(step, answer)
        return answer

    def _choose(self, plans: Sequence[StagePlan]) -> StagePlan:
        return choose_balanced(plans)

    def _evaluate_share(self, evaluation: Evaluation, rank: int, share: slice) -> torch.Tensor:
        step = self._latest
        may_go_on = not self._is_off and evaluation.branches == 2 and self.phase(step) is not Phase.CONNECT
        prediction = self._staged.run_whole(evaluation, share, capture=may_go_on)
        if may_go_on:
            self._exchange.keep(rank, step)
        return prediction

    def _learn(self, step: int, answer: Answer) -> None:
        """What a full step teaches every rank alike."""
        assert answer.discrepancy is not None
        if not self._is_open:
            self._exchange.open()
            self._is_open = True
        self._policy.observe(step, answer.discrepancy)
        unconditional, conditional = answer.prediction.chunk(2)
        self._exchange.observe(step, unconditional, conditional)


def _policy(pipe: Any, config: ParallelConfig, steps: int) -> SwitchPolicy:
    if config.switching == "fixed":
        tau1, tau2, interval = fixed_schedule(steps, config.tau1, config.tau2, config.full_interval)
        return FixedPolicy(tau1, tau2, interval, StepKind.PIPELINED, steps)
    given = (config.slope_window, config.slope_threshold, config.parallel_steps, config.tau_cap)
    if steps < LEAST_STEPS and given == (None,) * 4:
        return FixedPolicy(steps - 1, steps - 1, 0, StepKind.PIPELINED, steps)
    preset = published_settings(pipe).scaled(steps)
    return PublishedPolicy(preset.replaced(*given), steps)
