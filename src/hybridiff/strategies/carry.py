"""The guided pipeline: the conditional branch through both stages, guidance carried from the last full step."""

from __future__ import annotations

import torch

from ..denoiser.blocks import Boundary
from ..denoiser.call import Evaluation
from ..denoiser.stages import StagedDenoiser
from ..numerics.extrapolation import Forecast
from ..numerics.guidance import GuidanceCarry
from .base import Answer, RunContext, branch_rows
from .published.messages import INNER_RANK, OUTER_RANK, Exchange


class CarriedExchange(Exchange):
    """The inner stage runs on this step's boundary, the outer one on a forecast of the inner result.

    The outer rank sends its boundary as soon as it has it and goes on with what the inner stage returned up to the
    step before; so staleness is one step. The step answers `[e_c - d, e_c]` with the carried difference d, so that
    the pipeline's own guidance formula applies unchanged.

    Args:
        context: What the strategy works with.
        staged: The denoiser, cut.
        inner: Forecast of the inner result of the conditional branch, where this process plays the outer rank.
    """

    def __init__(self, context: RunContext, staged: StagedDenoiser, inner: Forecast | None) -> None:
        super().__init__(context, staged)
        self._carry = GuidanceCarry(context.config.carry)
        self._inner = inner  # of the outer rank; full steps feed it too
        self._result: Boundary = ()  # of the inner rank: not sent yet
        self._latest_full = self._latest_pipelined = -1

    def _keep(self, rank: int, step: int) -> None:
        self._latest_full = step

    def observe(self, step: int, unconditional: torch.Tensor, conditional: torch.Tensor) -> None:
        self._carry.observe(step, unconditional, conditional)

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        branch = branch_rows(evaluation, 1)
        received: dict[int, torch.Tensor] = {}

        def exchange(down: Boundary) -> Boundary:
            received.update(self.channel.swap({OUTER_RANK: down, INNER_RANK: self._result}))
            assert self._inner is not None
            if self._latest_pipelined > self._latest_full:  # a full step's own result is fresher
                self._inner.observe(self._latest_pipelined, _copied(self._unpack_up(received[OUTER_RANK])))
            return self.staged.restored(down, self._inner.at(step))

        prediction: dict[int, torch.Tensor] = {}
        if OUTER_RANK in self.members:
            with self.timeline.span(OUTER_RANK, "outer stage, conditional", "stage"):
                prediction[OUTER_RANK] = self.staged.run_outer(evaluation, branch, exchange=exchange)
        else:
            received = self.channel.swap({INNER_RANK: self._result})
        if INNER_RANK in self.members:
            down = self._unpack_down(received[INNER_RANK])
            with self.timeline.span(INNER_RANK, "inner stage, conditional", "stage"):
                self._result = self.staged.kept(down, self.staged.run_inner(evaluation, branch, down))
        self._latest_pipelined = step
        flat = self.channel.hand_out(prediction)
        self.channel.settle_pipelined()
        conditional = flat.view(-1, *evaluation.row_shape).clone()
        return Answer(torch.cat([self._carry.unconditional(step, conditional), conditional]), None)


def _copied(boundary: Boundary) -> Boundary:
    return tuple(tensor.clone() for tensor in boundary)  # the next swap overwrites the packet
