"""The published exchange: one prediction serves both branches (Jung et al. 2026, Sec. 3.3)."""

from __future__ import annotations

import torch

from ...denoiser.blocks import Boundary
from ...denoiser.call import Evaluation
from ...denoiser.stages import StagedDenoiser
from ..base import Answer, RunContext, branch_rows
from .messages import INNER_RANK, OUTER_RANK, Exchange


class PublishedExchange(Exchange):
    """The outer stage runs on the conditional branch with the inner result of the step before.

    The inner stage runs on the unconditional branch, on the boundary of the step before. So the inner result that
    reaches the prediction stems from an input two steps old, and guidance vanishes while the stage lasts.
    """

    def __init__(self, context: RunContext, staged: StagedDenoiser) -> None:
        super().__init__(context, staged)
        self._down: Boundary = ()  # of the conditional branch, kept by the outer rank
        self._up: Boundary = ()  # of the unconditional branch, kept by the inner rank

    def _keep(self, rank: int, step: int) -> None:
        if rank == OUTER_RANK:
            self._down = self.staged.down
        else:
            self._up = self.staged.up

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        received = self.channel.swap({INNER_RANK: self._up, OUTER_RANK: self._down})
        prediction: dict[int, torch.Tensor] = {}
        if INNER_RANK in self.members:
            down = self._unpack_down(received[INNER_RANK])
            with self.timeline.span(INNER_RANK, "inner stage, unconditional", "stage"):
                self._up = self.staged.run_inner(evaluation, branch_rows(evaluation, 0), down)
        if OUTER_RANK in self.members:
            up = self._unpack_up(received[OUTER_RANK])
            with self.timeline.span(OUTER_RANK, "outer stage, conditional", "stage"):
                prediction[OUTER_RANK] = self.staged.run_outer(evaluation, branch_rows(evaluation, 1), up=up)
            self._down = self.staged.down
        flat = self.channel.hand_out(prediction)
        self.channel.settle_pipelined()
        conditional = flat.view(-1, *evaluation.row_shape)
        return Answer(torch.cat([conditional, conditional]), None)  # e_u = e_c
