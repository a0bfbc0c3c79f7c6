"""What strategies have in common that know all kinds of steps beforehand, and warm up on every rank alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch

from ..denoiser.evaluation import Evaluation
from ..distributed.messages import Messages
from ..numerics.guidance import discrepancy_between
from ..schedule.kinds import StepKind
from ..strategies.base import Answer, RunContext
from ..strategies.evaluator import BranchEvaluator
from ..strategies.steps.executor import NoStep, StepExecutor
from ..strategies.steps.full import FullStep
from ..strategies.switching import SwitchingStrategy
from .plan import PlannedPolicy, plan_groups
from .replicated import ReplicatingEvaluator

M = TypeVar("M", bound=Messages)


class PlannedStrategy(SwitchingStrategy):
    """Full steps on every rank, then groups of steps that are answered together, as a subclass has `plan` say."""

    shares_rows = False

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self.evaluator = ReplicatingEvaluator(context.channel, context.timeline, context.steps)
        self.full = FullStep(self.evaluator, self.measures_drift)
        self.between: StepExecutor = NoStep(self.evaluator)
        self._costs: dict[str, Any] = {}  # of stages

    def stages(self) -> dict[str, Any]:
        return self._costs

    def plan(self, warm_up: int, size: int, kind: StepKind) -> list[StepKind]:
        """The kinds of all steps, for the policy and for whoever answers those between (see `plan_groups`)."""
        kinds = plan_groups(self.context.steps, warm_up, size, kind, self.context.extra_steps)
        self.policy = PlannedPolicy(kinds)
        return kinds


class PlannedStep(StepExecutor, Generic[M]):
    """The steps after the warm-up; messages are made once a full step has shown the shapes.

    Args:
        evaluator: Evaluates full steps.
        plan: The kind of each step.
        kind: Of those that have messages.
    """

    def __init__(self, evaluator: BranchEvaluator, plan: Sequence[StepKind], kind: StepKind) -> None:
        super().__init__(evaluator)
        self._plan, self._kind, self._channel = plan, kind, evaluator.channel
        self._made: M | None = None

    @property
    def _messages(self) -> M:
        assert self._made is not None
        return self._made

    def _talk_by(self, messages: M) -> None:
        self._made = self._channel.messages[self._kind] = messages

    def _answer(self, prediction: torch.Tensor, branches: int) -> Answer:
        return Answer(prediction, self._messages.read_status(discrepancy_between(prediction, branches)))

    def end(self, step: int) -> None:
        """A rank that failed before it knew takes part in the messages that this step was to have."""
        if self._made is not None and self._plan[step] is self._kind:
            self._channel.begin_step(step, self._kind, is_guided=False)
            self._made.take_part()
            self._made.read_status()
