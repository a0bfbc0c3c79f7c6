"""The messages of a pipeline of patches: what each stage hands to the next one, and the prediction to all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from ..denoiser.blocks import Boundary
from ..distributed.channel import Channel
from ..distributed.gather import fill, unfill
from ..schedule.kinds import StepKind
from .transfers import ChainMessages


class PatchMessages(ChainMessages):
    """A step's: one after each slot of time but the last, in which each stage has the patch after that of the next one.

    Args:
        channel: The run's messages.
        plan: The kind of each step.
        boundary: What a stage hands on of a whole picture: text and picture, (rows, tokens, channels) each.
        patches: Into how many the picture is cut.
        prediction: A tensor with the shape, dtype and device of a prediction.
    """

    def __init__(
        self,
        channel: Channel,
        plan: Sequence[StepKind],
        boundary: Boundary,
        patches: int,
        prediction: torch.Tensor,
    ) -> None:
        comm = channel.comm
        super().__init__(channel, plan, [comm.size - 1], [], boundary[0], prediction)
        text, picture = boundary
        shapes = [part.shape for part in picture.tensor_split(patches, 1)]
        self._shapes = [(text.shape, shapes[0]), *[(shape,) for shape in shapes[1:]]]  # text goes with patch 0 only
        most = max(map(_elements, self._shapes))
        self._out = {rank: text.new_zeros(most) for rank in comm.local_ranks if rank < comm.size - 1}
        self._in = {rank: text.new_zeros(most) for rank in comm.local_ranks if rank > 0}
        self._texts: dict[int, torch.Tensor] = {}  # that local ranks were handed in this step

    def running(self, slot: int) -> dict[int, int]:
        """The patch that each rank has in a slot."""
        ranks = range(self._channel.comm.size)
        return {rank: slot - rank for rank in ranks if 0 <= slot - rank < len(self._shapes)}

    @property
    def slots(self) -> int:
        """How many a step has."""
        return len(self._shapes) + self._channel.comm.size - 1

    def hand_on(self, slot: int, made: Mapping[int, Boundary]) -> dict[int, Boundary]:
        """Text and patch that local ranks are given for the next slot, as views that later messages overwrite.

        Args:
            slot: The one that is over.
            made: What local ranks return in it, text and patch.
        """
        channel = self._channel
        channel.heed_unread()
        moved = {rank: patch for rank, patch in self.running(slot).items() if rank < channel.comm.size - 1}
        local = channel.comm.local_ranks
        outgoing: dict[int, dict[int, torch.Tensor]] = {rank: {} for rank in local}
        incoming: dict[int, dict[int, torch.Tensor]] = {rank: {} for rank in local}
        for rank, patch in moved.items():
            size = _elements(self._shapes[patch])
            if rank in made:
                fill(self._out[rank], made[rank][-len(self._shapes[patch]) :])
            if rank in local:
                outgoing[rank][rank + 1] = self._out[rank][:size]
            if rank + 1 in local:
                incoming[rank + 1][rank] = self._in[rank + 1][:size]
            channel.sent["boundary"] += size * self._element_size
        self._sent += 1  # whoever is interrupted while it waits has taken part all the same
        if any(outgoing.values()) or any(incoming.values()):
            channel.send(lambda: channel.comm.sendrecv(outgoing, incoming), "hand a patch to the next stage")
        return {rank + 1: self._unpack(rank + 1, patch) for rank, patch in moved.items() if rank + 1 in local}

    def _in_order(self) -> list[Callable[[], object]]:
        slots = [partial(self.hand_on, slot, {}) for slot in range(self.slots - 1)]
        return [*slots, *super()._in_order()]

    def _unpack(self, rank: int, patch: int) -> Boundary:
        tensors = unfill(self._in[rank], self._shapes[patch])
        if len(tensors) > 1:
            self._texts[rank] = tensors[0].clone()
        return self._texts[rank], tensors[-1]


def _elements(shapes: Sequence[torch.Size]) -> int:
    return sum(shape.numel() for shape in shapes)
