"""`published`: the paper's system, condition-based partitioning with a pipelined phase of fixed length."""

from __future__ import annotations

from typing import Any

from ...config import ParallelConfig
from ...denoiser.evaluation import Evaluation
from ...denoiser.split import choose_balanced
from ...schedule.fixed import FixedPolicy
from ...schedule.kinds import Policy, StepKind
from ...schedule.notes import second_order_note
from ...schedule.presets import ModelSettings
from ..base import RunContext
from ..splitting import split_network
from ..steps.executor import NoStep, StepExecutor
from ..switching import SwitchingStrategy
from .exchange import PipelinedStep
from .presets import choose_policy


class PublishedStrategy(SwitchingStrategy):
    """Full steps, and from tau1 to tau2 pipelined ones."""

    name = "published"

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self._refusal = second_order_note(context.pipe.scheduler)
        self.policy = self._choose_policy(first)
        self.between = self._make_executor(first)

    @classmethod
    def needs_stages(cls, config: ParallelConfig, settings: ModelSettings) -> bool:
        return True

    @classmethod
    def check_steps(cls, config: ParallelConfig, settings: ModelSettings, scheduler: Any, steps: int) -> None:
        choose_policy(config, settings, scheduler, steps)

    def notes(self) -> list[str]:
        return [*([self._refusal] if self._refusal else []), *super().notes()]

    def _choose_policy(self, first: Evaluation) -> Policy:
        context = self.context
        if first.branches == 1 or self._refusal:
            return FixedPolicy.all_full(context.steps)
        return choose_policy(context.config, context.settings, context.pipe.scheduler, context.steps)

    def _make_executor(self, first: Evaluation) -> StepExecutor:
        if isinstance(self.policy, FixedPolicy):
            return NoStep(self.evaluator)
        staged = split_network(self.context, first, StepKind.PIPELINED, choose_balanced)
        return PipelinedStep(self.evaluator, staged)
