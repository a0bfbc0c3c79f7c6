"""What strategies that cut the denoiser have in common: the cut, agreed on by all ranks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ..config import ParallelConfig
from ..denoiser.call import Evaluation
from ..denoiser.cut import StagePlan
from ..denoiser.stages import StagedDenoiser
from ..switching import Phase, StepKind, SwitchPolicy
from .base import RunContext
from .cfg import CfgStrategy


class StagedStrategy(CfgStrategy):
    """Condition-based partitioning on a denoiser that can be cut into an outer and an inner stage."""

    uses_stages = True

    def __init__(self, context: RunContext, policy: SwitchPolicy) -> None:
        super().__init__(context)
        assert context.staged is not None
        self._staged: StagedDenoiser = context.staged
        self._policy = policy
        self._is_off = False  # whether this run can have full steps only
        self._off_note = ""
        self._latest = -1  # the latest step that was begun
        self.channel.kind_ahead = lambda: self.kind(self._latest + 1)

    @classmethod
    def check_network(cls, config: ParallelConfig, staged: StagedDenoiser) -> None:
        if config.cut is not None and not 0 <= config.cut < len(staged.cuts):
            raise ValueError(f"cut {config.cut} does not exist: this network has cuts 0 to {len(staged.cuts) - 1}")

    def phase(self, step: int) -> Phase:
        return Phase.WARM_UP if self._is_off else self._policy.phase(step)

    def kind(self, step: int) -> StepKind:
        is_guided = bool(self.context.pipe.do_classifier_free_guidance)
        return StepKind.FULL if self._is_off or not is_guided else self._policy.kind(step)

    @property
    def taus(self) -> tuple[int | None, int | None]:
        return (None, None) if self._is_off else (self._policy.tau1, self._policy.tau2)

    def stages(self) -> dict[str, Any]:
        return {} if self._is_off or self._staged.plan is None else asdict(self._staged.plan)

    def notes(self) -> list[str]:
        return [self._off_note] if self._off_note else self._policy.notes()

    def predict_extra(self, evaluation: Evaluation, step: int) -> torch.Tensor:
        return evaluation.run()

    @abstractmethod
    def _choose(self, plans: Sequence[StagePlan]) -> StagePlan:
        """The cut that suits the strategy."""

    def _prepare(self, evaluation: Evaluation) -> None:
        """See at the first step whether this run can have other steps than full ones, and where the network is cut."""
        scheduler = self.context.pipe.scheduler
        order = getattr(scheduler, "order", 1)
        if order > 1:
            self._off_note = (
                f"{type(scheduler).__name__} is of order {order}: its steps cannot be pipelined or reused, all ran "
                "partitioned"
            )
        self._is_off = order > 1 or evaluation.branches == 1
        if not self._is_off and self._staged.shape != evaluation.sample.shape:
            self._cut(evaluation)

    def _cut(self, evaluation: Evaluation) -> None:
        """Measure the blocks and cut; the leader's choice holds, as no two measurements are the same."""
        self._staged.uncut()
        plans = self._staged.measure(evaluation, branch_rows(evaluation, evaluation.branches - 1))
        plan = self._choose(plans) if self.config.cut is None else plans[self.config.cut]
        self._staged.cut(self.channel.agree(plan, "agree on the cut")[0], evaluation.sample.shape)


def branch_rows(evaluation: Evaluation, branch: int) -> slice:
    """The rows of one guidance branch of a call: 0 is the unconditional one, 1 the conditional one."""
    rows = evaluation.rows // evaluation.branches
    return slice(branch * rows, (branch + 1) * rows)
