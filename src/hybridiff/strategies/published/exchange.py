"""Pipelined steps: each rank runs one stage, one prediction serves both branches (Jung et al. 2026, Sec. 3.3)."""

from __future__ import annotations

import torch

from ...denoiser.blocks import Boundary
from ...denoiser.evaluation import Evaluation
from ...denoiser.rows import branch_rows
from ...denoiser.stages import StagedDenoiser
from ...schedule.kinds import StepKind
from ..base import Answer
from ..evaluator import BranchEvaluator
from ..steps.executor import StepExecutor
from .messages import INNER_RANK, OUTER_RANK, PipelineMessages, elements, unpack


class PipelinedStep(StepExecutor):
    """The outer stage runs on the conditional branch with the inner result of the step before.

    The inner stage runs on the unconditional branch, on the boundary of the step before. So the inner result that
    reaches the prediction stems from an input two steps old, and guidance vanishes while the phase lasts.

    Args:
        evaluator: Evaluates calls on all ranks.
        staged: The network, split.
    """

    def __init__(self, evaluator: BranchEvaluator, staged: StagedDenoiser) -> None:
        super().__init__(evaluator)
        self.staged: StagedDenoiser = staged
        self._channel = evaluator.channel
        self._local_ranks = evaluator.channel.comm.local_ranks
        self._messages: PipelineMessages | None = None
        self._down: Boundary = ()  # of the conditional branch, kept by the outer rank
        self._up: Boundary = ()  # of the unconditional branch, kept by the inner rank
        self._down_shapes: list[torch.Size] = []
        self._up_shapes: list[torch.Size] = []

    def run_full(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        with self.evaluator.timeline.span(rank, "whole network, own branch", "stage"):
            prediction = self.staged.run_whole(evaluation, rows)
        down, up = self.staged.down, self.staged.up
        self._down_shapes, self._up_shapes = [tensor.shape for tensor in down], [tensor.shape for tensor in up]
        if rank == OUTER_RANK:
            self._down = down
        else:
            self._up = up
        return prediction

    def observe(self, step: int, prediction: torch.Tensor) -> None:
        """Allocate the messages once the boundaries' shapes are known; on both ranks after the same full step."""
        if self._messages is None and self.staged.down:
            sizes = {INNER_RANK: elements(self.staged.up), OUTER_RANK: elements(self.staged.down)}
            self._messages = PipelineMessages(self._channel, sizes, self.staged.down[0], prediction.chunk(2)[1])
            self._row_shape = prediction.shape[1:]
            self._channel.messages[StepKind.PIPELINED] = self._messages

    def run(self, evaluation: Evaluation, step: int) -> Answer:
        messages = self._messages
        assert messages is not None
        received = messages.sendrecv({INNER_RANK: self._up, OUTER_RANK: self._down})
        prediction: dict[int, torch.Tensor] = {}
        if INNER_RANK in self._local_ranks:
            down = unpack(received[INNER_RANK], self._down_shapes)
            with self.evaluator.timeline.span(INNER_RANK, "inner stage, unconditional", "stage"):
                self._up = self.staged.run_inner(evaluation, branch_rows(evaluation, 0), down)
        if OUTER_RANK in self._local_ranks:
            up = unpack(received[OUTER_RANK], self._up_shapes)
            with self.evaluator.timeline.span(OUTER_RANK, "outer stage, conditional", "stage"):
                prediction[OUTER_RANK] = self.staged.run_outer(evaluation, branch_rows(evaluation, 1), lambda _: up)
            self._down = self.staged.down
        flat = messages.broadcast(prediction)
        messages.read_status()
        conditional = flat.view(-1, *self._row_shape)
        return Answer(torch.cat([conditional, conditional]))  # e_u = e_c

    def end(self, step: int) -> None:
        """A rank that failed before it knew takes part in the messages that this step was to have."""
        if self._messages is not None:
            self._channel.begin_step(step, StepKind.PIPELINED, is_guided=False)
            self._messages.take_part()
            self._messages.read_status()
