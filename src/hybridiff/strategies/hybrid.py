"""Condition-based partitioning that switches to cheaper steps while the branches agree (Jung et al. 2026, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from ..config import ParallelConfig, check_pipelined
from ..denoiser.call import Evaluation
from ..denoiser.split import StagePlan, choose_balanced, choose_share
from ..denoiser.stages import StagedDenoiser
from ..numerics.extrapolation import ORDERS, Forecast
from ..numerics.guidance import discrepancy, drift
from ..numerics.sensitivity import Influence, measure_influence
from ..schedule.kinds import FixedPolicy, Phase, StepKind, SwitchPolicy
from ..schedule.plan import STAGED, Schedule, describe_settings, may_need_stages
from ..schedule.presets import reuse_share
from .base import Answer, RunContext, branch_rows
from .carry import CarriedExchange
from .cfg import CfgStrategy
from .published.exchange import PublishedExchange
from .published.messages import OUTER_RANK, Exchange
from .steps.cached import Skip
from .steps.reuse import Reuse


class HybridStrategy(CfgStrategy):
    """Full steps by condition-based partitioning, and between them steps that cost less or nothing."""

    name = "hybrid"

    def __init__(self, context: RunContext) -> None:
        super().__init__(context)
        grid = getattr(context.pipe.scheduler, "num_inference_steps", None)
        self._schedule = Schedule(context.pipe, context.config, context.steps, grid)
        self._influence = Influence([1.0] * context.steps, [])
        self._policy: SwitchPolicy = FixedPolicy(range(context.steps), context.steps)  # until the first step says more
        self._staged = context.staged
        self._inner: dict[int, Forecast] = {}  # a rank: the inner result of its branch
        self._exchange: Exchange | None = None
        self._reuse: Reuse | None = None
        self._skip: Skip | None = None
        self._notes: list[str] = []
        self._latest = -1  # the latest step that was begun
        self._before: torch.Tensor | None = None  # the prediction of the full step before
        self._is_open = False
        self.channel.kind_ahead = self._kind_ahead

    @classmethod
    def needs_stages(cls, config: ParallelConfig, pipe: Any) -> bool:
        return may_need_stages(pipe, config)

    @classmethod
    def settings_of(cls, config: ParallelConfig, pipe: Any) -> str:
        return describe_settings(pipe, config)

    @classmethod
    def check_network(cls, config: ParallelConfig, staged: StagedDenoiser) -> None:
        if config.cut is not None and not 0 <= config.cut < len(staged.cuts):
            raise ValueError(f"cut {config.cut} does not exist: this network has cuts 0 to {len(staged.cuts) - 1}")

    @classmethod
    def check_call(cls, config: ParallelConfig, pipe: Any, steps: int) -> None:
        Schedule(pipe, config, steps).check()

    def phase(self, step: int) -> Phase:
        return self._policy.phase(step)

    def kind(self, step: int) -> StepKind:
        return self._policy.kind(step) if self.context.pipe.do_classifier_free_guidance else StepKind.FULL

    @property
    def taus(self) -> tuple[int | None, int | None]:
        return self._policy.tau1, self._policy.tau2

    def stages(self) -> dict[str, Any]:
        if self._staged is None or self._staged.plan is None or not self._is_cut:
            return {}
        return asdict(self._staged.plan)

    def notes(self) -> list[str]:
        return [*self._notes, *self._policy.notes()]

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        if step == 0:
            self._prepare(evaluation)
        self._latest = step
        if evaluation.branches == 1 and self.phase(step) is Phase.PARALLEL:
            self._end_parallel_stage(step)
        kind = self.kind(step)
        self.channel.begin_step(kind)
        if kind is StepKind.SKIPPED:
            assert self._skip is not None
            with self.context.timeline.span(self.comm.rank, "forecast of both branches", "stage"):
                return self._skip.predict(step)
        if kind is StepKind.PIPELINED:
            assert self._exchange is not None
            return self._exchange.predict(evaluation, step)
        return super().predict(evaluation, step)

    def predict_extra(self, evaluation: Evaluation, step: int) -> torch.Tensor:
        return evaluation.run()

    def _prepare(self, evaluation: Evaluation) -> None:
        """See at the first step whether this run can have other steps than full ones, and what they need."""
        if evaluation.branches == 1:
            return
        scheduler = self.context.pipe.scheduler
        order, name = getattr(scheduler, "order", 1), type(scheduler).__name__
        if order > 1:
            self._notes = [
                f"{name} is of order {order}: none of its steps can be shared in another way, all ran partitioned"
            ]
            return
        kinds = self._schedule.kinds
        if self.config.rule == "guided" or StepKind.SKIPPED in kinds:
            measured = measure_influence(scheduler, self.context.steps, evaluation.timestep)
            self._influence = self.channel.agree(measured, "agree on the influence of steps")[0]  # CPUs may be unlike
        self._policy = self._schedule.policy(self._influence.weights)
        self._notes = self._schedule.notes()
        if StepKind.SKIPPED in kinds:
            self._skip = Skip(self._schedule.forecast, self._schedule.catch_up, self._influence)
            if not self._influence.on_sample:
                self._notes.append(
                    f"{name} is not linear as it is configured: nothing makes up for the errors of skipped steps"
                )
        if not STAGED.isdisjoint(kinds):
            self._prepare_stages(evaluation, kinds)

    def _end_parallel_stage(self, step: int) -> None:
        """Guidance ended early, and the parallel stage with it.

        A rank that failed before it knew takes part in the messages that this step was to have.
        """
        if self._policy.kind(step) is StepKind.PIPELINED:
            self.channel.begin_step(StepKind.PIPELINED)
            self.channel.beat_pipelined()
        self._policy.tau2 = step - 1

    def _prepare_stages(self, evaluation: Evaluation, kinds: Sequence[StepKind]) -> None:
        assert self._staged is not None
        if StepKind.PIPELINED in kinds:
            check_pipelined(self.comm.size)  # once more: they may stem from a calibration
        if self._staged.shape != evaluation.sample.shape:
            self._cut(self._staged, evaluation)
        ranks = self.comm.members if StepKind.REUSE in kinds else {OUTER_RANK} & set(self.comm.members)
        self._inner = {rank: Forecast(ORDERS[self._schedule.forecast]) for rank in ranks}
        if StepKind.REUSE in kinds:
            self._reuse = Reuse(self._staged, self._inner)
        if StepKind.PIPELINED in kinds and self._schedule.guidance == "published":
            self._exchange = PublishedExchange(self.context, self._staged)
        elif StepKind.PIPELINED in kinds:
            self._exchange = CarriedExchange(self.context, self._staged, self._inner.get(OUTER_RANK))

    def _cut(self, staged: StagedDenoiser, evaluation: Evaluation) -> None:
        """Cut; what the leader measured of the stages stands in every report, as no two measurements are the same."""
        staged.uncut()
        plans = staged.measure(evaluation, branch_rows(evaluation, evaluation.branches - 1))
        plan = self._choose(plans) if self.config.cut is None else plans[self.config.cut]
        staged.cut(self.channel.agree(plan, "agree on the cut")[0], evaluation.sample.shape)

    def _choose(self, plans: Sequence[StagePlan]) -> StagePlan:
        """The pipeline wants equal stages, reuse a small outer one: by counted work, as an image depends on it."""
        purpose = StepKind.PIPELINED if StepKind.PIPELINED in self._schedule.kinds else StepKind.REUSE
        stored = self._schedule.splits.get(purpose.value)
        if stored is not None and stored < len(plans) and self.config.outer_share is None:
            return plans[stored]
        if purpose is StepKind.PIPELINED:
            return choose_balanced(plans)
        share = self.config.outer_share
        return choose_share(plans, reuse_share(self.context.pipe) if share is None else share)

    def _evaluate_share(self, evaluation: Evaluation, rank: int, share: slice) -> torch.Tensor:
        step = self._latest
        if self.kind(step) is StepKind.REUSE and evaluation.branches == 2:
            assert self._reuse is not None
            with self.context.timeline.span(rank, "outer stage, own branch", "stage"):
                return self._reuse.evaluate(evaluation, rank, share, step)
        if not self._may_go_on(evaluation):
            return super()._evaluate_share(evaluation, rank, share)
        assert self._staged is not None
        with self.context.timeline.span(rank, "whole network, own branch", "stage"):
            prediction = self._staged.run_whole(evaluation, share, capture=True)
        if rank in self._inner:
            self._inner[rank].observe(step, self._staged.kept(self._staged.down, self._staged.up))
        if self._exchange is not None:
            self._exchange.keep(rank, step)
        return prediction

    def _may_go_on(self, evaluation: Evaluation) -> bool:
        """Whether steps may follow that need what a full one leaves at the cut."""
        return self._is_cut and evaluation.branches == 2 and self.phase(self._latest) is not Phase.CONNECT

    @property
    def _is_cut(self) -> bool:
        """Whether this run has steps that need the network cut."""
        return self._reuse is not None or self._exchange is not None

    def _settled(self, prediction: torch.Tensor) -> Answer:
        if self.kind(self._latest) is StepKind.REUSE:
            return super()._settled(prediction)
        unconditional, conditional = prediction.chunk(2)
        before = torch.full_like(prediction, torch.nan) if self._before is None else self._before
        scalars = torch.stack([discrepancy(unconditional, conditional), drift(prediction, before)])
        measured, moved = self.channel.settle(scalars)
        self._require_finite(prediction, measured)
        # A bit may decide which step is the next full one: where devices are unlike, what the leader measured holds.
        if self.context.unlike_devices and self.config.rule != "fixed":
            measured, moved = self.channel.agree((measured, moved), "agree on what the step showed")[0]
        return self._learn(prediction, measured, moved)

    def _learn(self, prediction: torch.Tensor, measured: float, moved: float) -> Answer:
        """What a full step teaches every rank alike."""
        step = self._latest
        self._before = prediction.clone()  # the next gather overwrites it
        if self._exchange is not None:
            if not self._is_open:
                self._exchange.open()
                self._is_open = True
            self._exchange.observe(step, *prediction.chunk(2))
        answer = Answer(prediction, measured, None if step == 0 else moved)
        if self._skip is not None:
            self._skip.observe(step, self._before)
            answer = replace(answer, prediction=self._skip.caught_up(step, prediction))
        self._policy.observe(step, measured, moved)
        return answer

    def _kind_ahead(self) -> StepKind:
        """As the policy has it: whether guidance is on, ranks may learn one after the other."""
        step = self._latest + 1
        while self._policy.kind(step) is StepKind.SKIPPED:
            step += 1
        return self._policy.kind(step)


class ReuseStrategy(HybridStrategy):
    """The same by a fixed schedule, with reuse steps between full ones unless told otherwise (see `ParallelConfig`)."""

    name = "reuse"
