"""Pipelined steps: each rank runs one stage, one prediction serves both branches (Jung et al. 2026, Sec. 3.3)."""

from __future__ import annotations

import torch

from ...denoiser.blocks import Boundary
from ...denoiser.evaluation import Evaluation
from ...denoiser.stages import StagedDenoiser
from ...schedule.kinds import StepKind
from ..base import Answer
from ..evaluator import BranchEvaluator
from ..steps.executor import StepExecutor
from .layout import PipelineLayout
from .messages import PipelineMessages


class PipelinedStep(StepExecutor):
    """All stages run at once, on what their neighbours had in the step before.

    The outer stage runs on the conditional branch, with this step's sample and the inner result of the step before. The
    inner half of the stages runs on the unconditional branch. What stage d adds to the prediction stems from an input
    2 d steps old, or from the last full step. Guidance vanishes while the phase lasts.

    Args:
        evaluator: Evaluates calls on all ranks.
        staged: The network, split.
        layout: Which rank runs what.
    """

    def __init__(self, evaluator: BranchEvaluator, staged: StagedDenoiser, layout: PipelineLayout) -> None:
        super().__init__(evaluator)
        self.staged: StagedDenoiser = staged
        self._layout = layout
        self._channel = evaluator.channel
        self._messages: PipelineMessages | None = None
        self._boundaries: dict[int, dict[int, Boundary]] = {}  # of each local rank, for each of its neighbours

    def run_full(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        with self.evaluator.timeline.span(rank, "whole network, own branch", "stage"):
            prediction = self.staged.run_whole(evaluation, rows)
        self._keep(rank)
        return prediction

    def observe(self, step: int, prediction: torch.Tensor) -> None:
        """Allocate the messages once the boundaries' shapes are known; on all ranks after the same full step."""
        if self._messages is None and self.staged.down:
            downs, ups = (
                {number: [tensor.shape for tensor in boundary] for number, boundary in boundaries.items()}
                for boundaries in (self.staged.downs, self.staged.ups)
            )
            made_by_one = prediction.chunk(2)[1].chunk(self._layout.pipelines)[0]
            self._messages = PipelineMessages(self._channel, self._layout, downs, ups, self.staged.down[0], made_by_one)
            self._row_shape = prediction.shape[1:]
            self._channel.messages[StepKind.PIPELINED] = self._messages

    def run(self, evaluation: Evaluation, step: int) -> Answer:
        messages = self._messages
        assert messages is not None
        received = messages.sendrecv(self._boundaries)
        made = {rank: self._run_stage(evaluation, rank, told) for rank, told in received.items()}
        flat = messages.broadcast({rank: prediction for rank, prediction in made.items() if prediction is not None})
        messages.read_status()
        conditional = flat.view(-1, *self._row_shape)
        return Answer(torch.cat([conditional, conditional]))  # e_u = e_c

    def end(self, step: int) -> None:
        """A rank that failed before it knew takes part in the messages that this step was to have."""
        if self._messages is not None:
            self._channel.begin_step(step, StepKind.PIPELINED, is_guided=False)
            self._messages.take_part()
            self._messages.read_status()

    def _run_stage(self, evaluation: Evaluation, rank: int, told: dict[int, Boundary]) -> torch.Tensor | None:
        """Run a rank's stage on what its neighbours told it; the prediction, of an outer one."""
        layout, rows, stage = self._layout, self._layout.rows(rank, evaluation), self._layout.stage(rank)
        by_number = {number: told[other] for other, number in layout.neighbors(rank).items()}
        up = by_number.get(stage, ())  # of the next stage within
        branch = "conditional" if stage < layout.replicas else "unconditional"
        which = "outer" if stage == 0 else "inner" if layout.stages == 2 else f"inner {stage}"
        prediction = None
        with self.evaluator.timeline.span(rank, f"{which} stage, {branch}", "stage"):
            if stage == 0:
                prediction = self.staged.run_outer(evaluation, rows, lambda _: up)
            else:
                self.staged.run_inner(evaluation, rows, by_number[stage - 1], stage, up)
        self._keep(rank)
        return prediction

    def _keep(self, rank: int) -> None:
        """Keep what a rank will tell its neighbours: inwards its boundary, outwards its result."""
        stage, staged = self._layout.stage(rank), self.staged
        self._boundaries[rank] = {
            other: (staged.downs if number == stage else staged.ups)[number]
            for other, number in self._layout.neighbors(rank).items()
        }
