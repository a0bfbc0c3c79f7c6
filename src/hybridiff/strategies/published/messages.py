"""What the two ranks of a pipeline tell each other in a pipelined step, and what they make of it."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from ...denoiser.blocks import Boundary
from ...denoiser.call import Evaluation
from ...denoiser.stages import StagedDenoiser
from ..base import Answer, RunContext

INNER_RANK, OUTER_RANK = 0, 1
"""The rank of the unconditional branch runs the inner stage, that of the conditional branch the outer one."""


class Exchange(ABC):
    """The pipelined steps of one run: one grouped swap of boundaries, both stages at once, then the prediction.

    Args:
        context: What the strategy works with.
        staged: The denoiser, cut.
    """

    def __init__(self, context: RunContext, staged: StagedDenoiser) -> None:
        self.channel = context.channel
        self.members = context.channel.comm.members
        self.timeline = context.timeline
        self.staged = staged
        self._down_shapes: list[torch.Size] = []
        self._up_shapes: list[torch.Size] = []

    def open(self) -> None:
        """Allocate the messages once the boundaries' shapes are known; on all ranks after the same full step."""
        self.channel.open_pipeline(
            peers={INNER_RANK: OUTER_RANK, OUTER_RANK: INNER_RANK},
            elements={INNER_RANK: _elements(self._up_shapes), OUTER_RANK: _elements(self._down_shapes)},
            source=OUTER_RANK,
            like=self.staged.down[0],
        )

    def keep(self, rank: int, step: int) -> None:
        """Keep what a whole forward of a rank left behind: every full step might be the last before a group."""
        self._down_shapes = [tensor.shape for tensor in self.staged.down]
        self._up_shapes = [tensor.shape for tensor in self.staged.up]
        self._keep(rank, step)

    @abstractmethod
    def _keep(self, rank: int, step: int) -> None: ...

    def observe(self, step: int, unconditional: torch.Tensor, conditional: torch.Tensor) -> None:  # noqa: B027
        """Take in both predictions of a full step, (B, C, H, W) each."""

    @abstractmethod
    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        """Answer the evaluation of a pipelined step."""

    def _unpack_down(self, flat: torch.Tensor) -> Boundary:
        return _unpack(flat, self._down_shapes)

    def _unpack_up(self, flat: torch.Tensor) -> Boundary:
        return _unpack(flat, self._up_shapes)


def _elements(shapes: list[torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes)


def _unpack(flat: torch.Tensor, shapes: list[torch.Size]) -> Boundary:
    """The tensors of a boundary out of a packet, as views."""
    parts = torch.split(flat, [shape.numel() for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
