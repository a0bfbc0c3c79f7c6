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
from ..numerics.guidance import discrepancy
from ..schedule.kinds import Policy, StepKind
from ..strategies.base import Answer, RunContext
from ..strategies.offered import make_settings
from ..strategies.steps.executor import NoStep, StepExecutor
from ..strategies.steps.full import FullStep
from ..strategies.switching import SwitchingStrategy
from ..utils.names import require_known
from .foresight import Foresight
from .plan import PlannedPolicy, plan_groups
from .replicated import ReplicatingEvaluator
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


class ParaStepStrategy(SwitchingStrategy):
    """Full steps on every rank, then cycles in which each rank evaluates another step."""

    name = "parastep"
    shares_rows = False

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self.evaluator = ReplicatingEvaluator(context.channel, context.timeline, context.steps)
        self.full = FullStep(self.evaluator, self.measures_drift)
        self._why_full = _why_full(context)
        ranks, settings = context.channel.comm.size, make_settings(ParaStepSettings, context.config.settings)
        warm_up = context.steps if ranks == 1 or self._why_full else settings.warm_up
        plan = plan_groups(context.steps, warm_up, ranks, StepKind.AHEAD, context.extra_steps)
        self.policy: Policy = PlannedPolicy(plan)
        self.between: StepExecutor = NoStep(self.evaluator)
        self._foresight: Foresight | None = None
        if StepKind.AHEAD in plan:
            self._foresight = Foresight(context.pipe.scheduler, Timesteps(context))
            context.undo.callback(self._foresight.remove)
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


class AheadStep(StepExecutor):
    """The steps after the warm-up.

    Args:
        evaluator: Evaluates full steps.
        foresight: Foresees denoiser calls.
        plan: The kind of each step.
        settings: The user's own.
    """

    def __init__(
        self,
        evaluator: ReplicatingEvaluator,
        foresight: Foresight,
        plan: Sequence[StepKind],
        settings: ParaStepSettings,
    ) -> None:
        super().__init__(evaluator)
        self._foresight, self._plan, self._reuse = foresight, plan, settings.reuse
        self._channel = evaluator.channel
        self._messages: GatherMessages | None = None
        self._shape = torch.Size()  # of a prediction
        self._evaluated = dict.fromkeys(range(self._channel.comm.size), 0)  # the last step, by rank
        self._ahead: dict[int, torch.Tensor] = {}  # predictions of steps to come

    def observe(self, step: int, prediction: torch.Tensor) -> None:
        """Allocate the messages once shapes are known; on every rank after the same full step."""
        if self._messages is None:
            self._shape = prediction.shape
            self._messages = GatherMessages(self._channel, prediction.numel(), prediction)
            self._channel.messages[StepKind.AHEAD] = self._messages
        self._evaluated = dict.fromkeys(self._evaluated, step)

    def run(self, evaluation: Evaluation, step: int) -> Answer:
        if self._plan[step] is StepKind.CACHED:
            return Answer(self._ahead.pop(step))
        messages, steps = self._messages, self._cycle(step)
        assert messages is not None
        pieces = {
            rank: self._evaluate(evaluation, rank, step)
            for rank in self._channel.comm.local_ranks
            if step + rank in steps
        }
        gathered = messages.all_gather(pieces)
        self._ahead = {step + rank: gathered[rank].view(self._shape).clone() for rank in range(len(steps))}
        self._evaluated |= {rank: step + rank for rank in range(len(steps))}
        prediction = self._ahead.pop(step)
        branches = prediction.chunk(evaluation.branches)
        return Answer(prediction, messages.read_status(discrepancy(branches[0], branches[-1]).reshape(1)))

    def end(self, step: int) -> None:
        """A rank that failed before it knew takes part in the messages that this step was to have."""
        if self._messages is not None and self._plan[step] is StepKind.AHEAD:
            self._channel.begin_step(step, StepKind.AHEAD, is_guided=False)
            self._messages.take_part()
            self._messages.read_status()

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
