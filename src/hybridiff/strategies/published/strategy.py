"""`published`: the paper's system, condition-based partitioning with a pipelined phase of fixed length."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ...config import ParallelConfig
from ...denoiser.evaluation import Evaluation
from ...denoiser.nesting import choose_nested
from ...report.speedup import RowPartition
from ...schedule.fixed import FixedPolicy
from ...schedule.kinds import Policy, StepKind
from ...schedule.notes import second_order_note
from ...schedule.presets import ModelSettings
from ..base import RunContext
from ..splitting import split_network
from ..steps.executor import NoStep, StepExecutor
from ..switching import SwitchingStrategy
from .exchange import PipelinedStep
from .layout import PipelineLayout, ReplicaGroups
from .presets import choose_policy


class PublishedStrategy(SwitchingStrategy):
    """Full steps, and from tau1 to tau2 pipelined ones."""

    name = "published"
    saves_work = True

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        self._refusal = second_order_note(context.pipe.scheduler)
        self.policy = self._choose_policy(context, first)
        self._layout = None if isinstance(self.policy, FixedPolicy) else _choose_layout(context, first)
        super().__init__(context if self._layout is None else _with_replicas(context, self._layout), first)
        self.between = self._make_executor(first)

    @property
    def partition(self) -> RowPartition | None:
        """Ranks that evaluate the same rows are none the faster for it."""
        return None if self.evaluator.partition is None else replace(self.evaluator.partition, shards=1)

    @classmethod
    def needs_stages(cls, config: ParallelConfig, settings: ModelSettings) -> bool:
        return True

    @classmethod
    def check_steps(cls, config: ParallelConfig, settings: ModelSettings, scheduler: Any, steps: int) -> None:
        choose_policy(config, settings, scheduler, steps)

    def notes(self) -> list[str]:
        return [*([self._refusal] if self._refusal else []), *self._layout_notes(), *super().notes()]

    def _layout_notes(self) -> list[str]:
        layout = self._layout
        if layout is None or layout.replicas == 1:
            return []
        return [
            f"the network is cut into {layout.stages} stages: full steps take as long as on "
            f"{layout.ranks // layout.replicas} ranks, as {layout.replicas} ranks evaluate the same rows"
        ]

    def _choose_policy(self, context: RunContext, first: Evaluation) -> Policy:
        if first.branches == 1 or self._refusal:
            return FixedPolicy.all_full(context.steps)
        return choose_policy(context.config, context.settings, context.pipe.scheduler, context.steps)

    def _make_executor(self, first: Evaluation) -> StepExecutor:
        if self._layout is None:
            return NoStep(self.evaluator)
        stages = self._layout.stages
        staged = split_network(
            self.context, first, StepKind.PIPELINED, lambda splits: choose_nested(splits, stages), stages
        )
        return PipelinedStep(self.evaluator, staged, self._layout)


def _choose_layout(context: RunContext, first: Evaluation) -> PipelineLayout:
    extension, images = context.config.published.extension, first.rows // first.branches
    return PipelineLayout.choose(extension, context.channel.comm.size, images)


def _with_replicas(context: RunContext, layout: PipelineLayout) -> RunContext:
    return replace(context, groups=ReplicaGroups(context.channel.comm, layout.replicas))
