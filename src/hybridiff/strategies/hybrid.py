"""`hybrid`: full steps where they are needed, and between them steps that cost little or nothing."""

from __future__ import annotations

from typing import Any

from ..config import ParallelConfig, parse_steps
from ..denoiser.adapters.base import argument
from ..denoiser.evaluation import Evaluation
from ..denoiser.split import choose_outer
from ..numerics.sensitivity import Sensitivity, measure_sensitivity
from ..schedule.fixed import FixedPolicy
from ..schedule.kinds import StepKind
from ..schedule.plan import RunPlan
from ..schedule.presets import ModelSettings
from ..schedule.promised import estimated_fidelity
from .base import RunContext
from .splitting import split_network
from .steps.executor import NoStep, StepExecutor
from .steps.making import make_cached_step
from .steps.reuse import ReuseStep
from .switching import SwitchingStrategy


class HybridStrategy(SwitchingStrategy):
    """Cached or reuse steps between full ones, as a plan has it that is made at the first step."""

    name = "hybrid"
    saves_work = cuts_stages = True

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self._scale = _scale(context.pipe)
        self._plan = self._make_plan()
        self.policy = self._plan.policy
        self.between = self._make_executor(first)

    @classmethod
    def needs_stages(cls, config: ParallelConfig, settings: ModelSettings) -> bool:
        return settings.may_reuse(config)

    @classmethod
    def check_steps(cls, config: ParallelConfig, settings: ModelSettings, scheduler: Any, steps: int) -> None:
        if config.full_steps is not None and not hasattr(scheduler, "prk_timesteps"):  # PNDM's are known in its run
            order = getattr(scheduler, "order", 1)  # each step but the last one takes so many evaluations
            FixedPolicy(parse_steps(config.full_steps), order * (steps - 1) + 1)

    def notes(self) -> list[str]:
        return [*self._plan.notes, *super().notes(), *self.between.notes(), *self._of_scale()]

    def _of_scale(self) -> list[str]:
        """What a callback that changed guidance did to a promise; where it ended, all steps were full."""
        scale = _scale(self.context.pipe)
        if self._plan.fidelity is None or scale == self._scale or scale <= 1:
            return []
        return [f"guidance_scale went from {self._scale} to {scale}: the promise was reckoned with the former"]

    def _make_plan(self) -> RunPlan:
        context = self.context
        steps = context.first_step + context.steps
        measured = measure_sensitivity(context.scheduler, steps, context.first_timestep, context.eta)
        rest = measured.rest(context.first_step)
        scale = context.guidance_scale
        return RunPlan.make(context.config, context.settings, context.pipe, self._leaders(rest), scale)

    def fidelity(self) -> dict[str, float]:
        promised, gain = self._plan.fidelity, self.context.settings.decoder_gain
        return {} if promised is None else {"promised": promised, "estimated": estimated_fidelity(self.policy, gain)}

    def _leaders(self, measured: Sensitivity) -> Sensitivity:
        """The leader's measurement where those of the ranks may differ in a bit."""
        if not self.context.heterogeneous:
            return measured
        return self.channel.consensus(measured, "agree on the sensitivity of steps")[0]

    def _make_executor(self, first: Evaluation) -> StepExecutor:
        plan = self._plan
        if plan.step_kind is StepKind.FULL:
            return NoStep(self.evaluator)
        if plan.step_kind is StepKind.CACHED:
            return make_cached_step(plan, self.evaluator, self.context)
        share = self.context.settings.reuse_share
        staged = split_network(self.context, first, StepKind.REUSE, lambda splits: choose_outer(splits, share))
        return ReuseStep(self.evaluator, staged, plan.sensitivity.places)


def _scale(pipe: Any) -> float:
    """The pipeline's guidance scale now; 0 where it does not say, has one for each frame, or one that stays."""
    scale = getattr(pipe, "guidance_scale", None)
    is_input = argument(pipe, {}, "true_cfg_scale") is not None
    return float(scale) if isinstance(scale, (int, float)) and not is_input else 0.0
