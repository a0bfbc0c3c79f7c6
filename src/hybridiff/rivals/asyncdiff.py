"""`asyncdiff`: stages of the network on a rank each, on inputs of an earlier step (AsyncDiff, arXiv 2406.06911).

Rank i runs stage i on what stage i-1 returned in the step before, so all stages run at once. With stride 2 a further
rank has a second copy of the last stage, and one computation answers two steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..config import ParallelConfig
from ..denoiser.evaluation import Evaluation
from ..denoiser.split import choose_balanced, make_split
from ..errors import UsageError
from ..schedule.kinds import StepKind
from ..schedule.presets import ModelSettings
from ..strategies.base import Answer, RunContext
from ..strategies.evaluator import BranchEvaluator
from ..strategies.offered import make_settings
from ..strategies.splitting import choose_split
from ..utils.names import require_known
from .chain import ChainedDenoiser, Cut, Outputs, at_timestep
from .costs import layer_costs
from .planned import PlannedStep, PlannedStrategy
from .timesteps import Timesteps
from .transfers import ChainMessages, Transfer

CUTS = ("chain", "nested")


@dataclass(frozen=True)
class AsyncDiffSettings:
    """Settings of `asyncdiff`."""

    stride: int = field(default=1, metadata={"help": "steps that one computation answers", "least": 1, "most": 2})
    warm_up: int = field(default=1, metadata={"help": "full steps at the beginning", "least": 1})
    time_shift: bool = field(default=False, metadata={"help": "condition stages on the timestep of the step before"})
    cut: str | None = field(
        default=None,
        metadata={"help": "chain, or nested (two stages, one around the other); nested for two stages of a U-Net"},
    )


class AsyncDiffStrategy(PlannedStrategy):
    """Full steps on every rank, then stages that run at once."""

    name = "asyncdiff"

    def __init__(self, context: RunContext, first: Evaluation) -> None:
        super().__init__(context, first)
        self._settings = settings = make_settings(AsyncDiffSettings, context.config.settings)
        self._stages = context.channel.comm.size - settings.stride + 1
        warm_up = settings.warm_up if self._stages > 1 else context.steps
        plan = self.plan(warm_up, settings.stride, StepKind.PIPELINED)
        if StepKind.PIPELINED in plan:
            self.between = AsyncStep(self.evaluator, self._split(first), plan, Timesteps(context), settings)

    @classmethod
    def needs_stages(cls, config: ParallelConfig, settings: ModelSettings) -> bool:
        return True

    @classmethod
    def check_ranks(cls, config: ParallelConfig, ranks: int) -> None:
        settings = make_settings(AsyncDiffSettings, config.settings)
        if settings.cut is not None:
            require_known("cut", settings.cut, CUTS)
        stages = ranks - settings.stride + 1
        if settings.stride == 2 and stages < 2:
            raise UsageError(
                f"asyncdiff with stride 2 needs 3 ranks or more, got {ranks}; use --devices 3, or stride 1"
            )
        if settings.cut == "nested" and stages != 2:
            raise UsageError(
                f"a nested cut has 2 stages, on {settings.stride + 1} ranks with stride {settings.stride}, got {ranks}"
            )

    def _split(self, first: Evaluation) -> ChainedDenoiser:
        """The network in stages; by counted work or a calibration, so that an image never depends on a run's times."""
        staged, call, channel = self.context.staged, first.calls[0], self.channel
        assert staged is not None
        layers, skips = staged.layers, call.adapter.skips(call.network)
        cost = layer_costs(self.context, first, self._stages)
        if (self._settings.cut or ("nested" if skips and self._stages == 2 else "chain")) == "nested":
            splits = [make_split(point, layers, cost) for point in staged.split_points]
            point = choose_split(self.context, StepKind.PIPELINED, splits, choose_balanced).point
            cut = Cut.nested(len(layers), point.entry, point.exit, skips)
        else:
            cut = Cut.chain([layer.work for layer in cost.layers], self._stages, skips)
        shares, copies = cut.shares(cost), first.branches * (channel.comm.size - 1)
        self._costs = {
            "largest": max(shares),
            "shares": shares,
            "begin": [layers[cut.layers_of(stage)[0]].name for stage in range(cut.stages)],
            "bytes_if_all_were_sent": copies * sum(layer.bytes for layer in cost.layers),  # as the published code does
        }
        chained = ChainedDenoiser(call.network, layers, cut)
        self.context.undo.callback(chained.remove)
        return chained


class AsyncStep(PlannedStep[ChainMessages]):
    """The steps after the warm-up.

    Args:
        evaluator: Evaluates full steps.
        chained: The network in stages.
        plan: The kind of each step.
        timesteps: Of each step.
        settings: The user's own.
    """

    def __init__(
        self,
        evaluator: BranchEvaluator,
        chained: ChainedDenoiser,
        plan: list[StepKind],
        timesteps: Timesteps,
        settings: AsyncDiffSettings,
    ) -> None:
        super().__init__(evaluator, plan, StepKind.PIPELINED)
        self._chained, self._timesteps, self._settings = chained, timesteps, settings
        self._whole: Outputs = {}  # of the last full step
        self._given: dict[int, Outputs] = {}  # for the next stage of each local rank
        self._next: torch.Tensor | None = None  # prediction for a step that computes nothing

    def run_full(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        with self.evaluator.timeline.span(rank, "whole network, all branches", "stage"):
            prediction, self._whole = self._chained.run_whole(evaluation)
        self._given = dict.fromkeys(self._channel.comm.local_ranks, self._whole)
        return prediction

    def observe(self, step: int, prediction: torch.Tensor) -> None:
        """Allocate the messages once shapes are known; on every rank after the same full step."""
        if self._made is None and self._whole:
            comm, settings = self._channel.comm, self._settings
            sources = [comm.size - 1, comm.size - 2][: settings.stride]  # for a step, and for the one after it
            boundary = next(iter(self._whole.values()))[0]
            transfers = self._transfers()
            self._talk_by(ChainMessages(self._channel, self._plan, sources, transfers, boundary, prediction))

    def run(self, evaluation: Evaluation, step: int) -> Answer:
        if self._plan[step] is StepKind.CACHED:
            assert self._next is not None
            return Answer(self._next)
        messages = self._messages
        predictions: dict[int, torch.Tensor] = {}
        made: dict[int, Outputs] = {}
        for rank in self._channel.comm.local_ranks:
            prediction, made[rank] = self._run_stage(evaluation, rank, step)
            if prediction is not None:
                predictions[rank] = prediction
        answers = [answer.clone() for answer in messages.broadcast(predictions)]
        self._given = messages.exchange(made)
        messages.end(predictions)
        self._next = answers[-1]
        return self._answer(answers[0], evaluation.branches)

    def _run_stage(self, evaluation: Evaluation, rank: int, step: int) -> tuple[torch.Tensor | None, Outputs]:
        stage, settings = self._stage(rank), self._settings
        is_for_next = settings.stride == 2 and rank < self._channel.comm.size - 1
        conditioned = evaluation
        if is_for_next or settings.time_shift:
            conditioned = at_timestep(evaluation, self._timesteps.at(step + is_for_next - settings.time_shift))
        with self.evaluator.timeline.span(rank, f"stage {stage}, all branches", "stage"):
            return self._chained.run_stage(stage, conditioned, self._given[rank])

    def _stage(self, rank: int) -> int:
        """The stage of a rank; the last two have the same one with stride 2."""
        return min(rank, self._chained.cut.stages - 1)

    def _transfers(self) -> list[Transfer]:
        """What ranks send each other after each computation: of each output, its stage's first rank sends it."""
        cut, transfers = self._chained.cut, []
        for rank in range(self._channel.comm.size):
            shapes: dict[int, dict[int, list[torch.Size]]] = {}
            for layer in cut.needs(self._stage(rank)):
                shapes.setdefault(cut.owners[layer], {})[layer] = [tensor.shape for tensor in self._whole[layer]]
            transfers += [Transfer(source, rank, own) for source, own in shapes.items()]
        return transfers
