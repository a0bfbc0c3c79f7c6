"""`parastep`: ranks evaluate steps to come, at samples foreseen with earlier predictions (ParaStep, arXiv 2505.14741).

In a cycle of n steps rank k foresees the sample k steps ahead: it lets a copy of the scheduler take k steps with what
it predicted last. All evaluate at once; one all-gather hands every rank the predictions of all n steps. In the
published system rank 0 alone steps the scheduler and sends latents; here every rank steps its own, and none travel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..config import ParallelConfig
from ..denoiser.evaluation import Evaluation
from ..distributed.gather import GatherMessages
from ..schedule.kinds import StepKind
from ..strategies.base import Answer, RunContext
from ..strategies.evaluator import BranchEvaluator
from ..strategies.offered import make_settings
from ..utils.names import require_known
from .foresight import Foresight
from .planned import PlannedStep, PlannedStrategy
from .timesteps import Timesteps

REUSES = ("own", "latest")


@dataclass(frozen=True)
class ParaStepSettings:
    """Settings of `parastep`."""

    warm_up: int = field(default=5, metadata={"help": "full steps at the beginning", "least": 1})
    reuse: str = field(
        default="own",
        metadata={"help": "with what a rank foresees samples: its own last prediction (published), or the latest one"},
    )


class ParaStepStrategy(PlannedStrategy):
    """Full steps on every rank, then cycles in which each rank evaluates another step."""

    name = "parastep"

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self._why_full = _why_full(context)
        ranks, settings = context.channel.comm.size, make_settings(ParaStepSettings, context.config.settings)
        warm_up = context.steps if ranks == 1 or self._why_full else settings.warm_up
        plan = self.plan(warm_up, ranks, StepKind.AHEAD)
        self._foresight: Foresight | None = None
        if StepKind.AHEAD in plan:
            self._foresight = Foresight(context.pipe.scheduler, Timesteps(context))
            context.undo.enter_context(self._foresight)
            self.between = AheadStep(self.evaluator, self._foresight, plan, settings)

    @classmethod
    def check_ranks(cls, config: ParallelConfig, ranks: int) -> None:
        require_known("reuse", make_settings(ParaStepSettings, config.settings).reuse, REUSES)

    def notes(self) -> list[str]:
        return [self._why_full] if self._why_full else []

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        foresight = self._foresight
        if foresight is not None:
            foresight.step = step
            foresight.forget(before=step - 2 * self.channel.comm.size)
            is_cycle = not self._has_ended and self._scheduled(step) is StepKind.AHEAD
            if is_cycle and evaluation.branches == self._branches and not foresight.is_right(evaluation):
                # Every rank sees it; one that failed before it could takes part in the messages that were to come.
                self.between.end(step)
                self.policy.tau2 = step - 1
                self._why_full = (
                    f"the denoiser is given something else than the scheduler returned (inpainting, or a callback): "
                    f"from step {step} on every step is full"
                )
        return super().predict(evaluation, step)


def _why_full(context: RunContext) -> str:
    """Why no step can be foreseen; empty where it can."""
    if context.first_timestep is None:
        return f"how {type(context.pipe).__name__} makes denoiser calls of latents is not known: every step is full"
    if getattr(context.pipe, "controlnet", None) is not None:
        return "a ControlNet sees the latents as well, and cannot be foreseen: every step is full"
    return ""


class AheadStep(PlannedStep[GatherMessages]):
    """The steps after the warm-up.

    Args:
        evaluator: Evaluates full steps.
        foresight: Foresees denoiser calls.
        plan: The kind of each step.
        settings: The user's own.
    """

    def __init__(
        self,
        evaluator: BranchEvaluator,
        foresight: Foresight,
        plan: Sequence[StepKind],
        settings: ParaStepSettings,
    ) -> None:
        super().__init__(evaluator, plan, StepKind.AHEAD)
        self._foresight, self._reuse = foresight, settings.reuse
        self._shape = torch.Size()  # of a prediction
        self._evaluated = dict.fromkeys(range(self._channel.comm.size), 0)  # the last step, by rank
        self._ahead: dict[int, torch.Tensor] = {}  # predictions of steps to come

    def observe(self, step: int, prediction: torch.Tensor) -> None:
        """Allocate the messages once shapes are known; on every rank after the same full step."""
        if self._made is None:
            self._shape = prediction.shape
            self._talk_by(GatherMessages(self._channel, prediction.numel(), prediction))
        self._evaluated = dict.fromkeys(self._evaluated, step)

    def run(self, evaluation: Evaluation, step: int) -> Answer:
        if self._plan[step] is StepKind.CACHED:
            return Answer(self._ahead.pop(step))
        steps = self._cycle(step)
        pieces = {
            rank: self._evaluate(evaluation, rank, step)
            for rank in self._channel.comm.local_ranks
            if step + rank in steps
        }
        gathered = self._messages.all_gather(pieces)
        self._ahead = {step + rank: gathered[rank].view(self._shape).clone() for rank in range(len(steps))}
        self._evaluated |= {rank: step + rank for rank in range(len(steps))}
        prediction = self._ahead.pop(step)
        return self._answer(prediction, evaluation.branches)

    def _evaluate(self, evaluation: Evaluation, rank: int, step: int) -> torch.Tensor:
        """What a rank predicts of the step that is so many ahead as its number."""
        known = self._foresight.guided[self._evaluated[rank] if self._reuse == "own" else step - 1]
        if rank:
            evaluation = self._foresight.call(evaluation, [known] * rank)
        with self.evaluator.timeline.span(rank, f"whole network, step {step + rank}", "stage"):
            return evaluation.run()

    def _cycle(self, step: int) -> range:
        """The steps of the cycle that begins with one."""
        end = step + 1
        while end < len(self._plan) and self._plan[end] is StepKind.CACHED:
            end += 1
        return range(step, end)
