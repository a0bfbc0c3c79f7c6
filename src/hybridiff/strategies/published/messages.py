"""The messages of a pipelined step: one grouped swap of boundaries, then the predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ...denoiser.blocks import Boundary
from ...distributed.channel import Channel
from ...distributed.gather import fill, unfill
from ...distributed.messages import Messages
from ...distributed.reading import Reading
from ...distributed.status import SLOT
from .layout import PipelineLayout

_TAIL = 1 + SLOT
"""Elements behind each boundary: whether all that its sender sends is finite (0, or NaN), and its status slot."""


class PipelineMessages(Messages):
    """Their buffers, allocated once.

    In the swap every rank hears every other one, those that are not its neighbours by the tail alone. Behind it the
    outer ranks alone have a word left: they do not wait for the inner stages of their own step.

    Args:
        channel: The run's messages.
        layout: Which rank runs what.
        downs: Shapes of the boundaries inwards.
        ups: Shapes of the boundaries outwards.
        boundary: A tensor with the dtype and device of boundaries.
        prediction: A tensor with the shape, dtype and device of the prediction of one rank's images.
    """

    def __init__(
        self,
        channel: Channel,
        layout: PipelineLayout,
        downs: Mapping[int, Sequence[torch.Size]],
        ups: Mapping[int, Sequence[torch.Size]],
        boundary: torch.Tensor,
        prediction: torch.Tensor,
    ) -> None:
        ranks = range(layout.ranks)
        self._channel, self._layout, self._swapped = channel, layout, False
        self._shapes: dict[tuple[int, int], Sequence[torch.Size]] = {  # of what one rank tells another
            (rank, other): (downs if layout.stage(rank) < layout.stage(other) else ups)[number]
            for rank in ranks
            for other, number in layout.neighbors(rank).items()
        }
        others = {rank: [other for other in ranks if other != rank] for rank in channel.comm.local_ranks}
        self._outgoing = {
            rank: {other: boundary.new_zeros(self._elements(rank, other) + _TAIL) for other in heard}
            for rank, heard in others.items()
        }
        self._incoming = {
            rank: {other: boundary.new_zeros(self._elements(other, rank) + _TAIL) for other in heard}
            for rank, heard in others.items()
        }
        self._predictions = {
            outer: {rank: prediction.new_zeros(prediction.numel() + SLOT) for rank in others}
            for outer in layout.outer_ranks
        }

    def begin(self) -> None:
        self._swapped = False

    def sendrecv(self, boundaries: Mapping[int, Mapping[int, Boundary]]) -> dict[int, dict[int, Boundary]]:
        """Swap boundaries with the neighbours.

        Args:
            boundaries: What each local rank tells which other one.

        Returns:
            What each local rank was told by each neighbour, as views that the next swap overwrites.
        """
        channel, comm = self._channel, self._channel.comm
        channel.heed_unread()
        for rank, buffers in self._outgoing.items():
            self._fill(buffers, boundaries.get(rank, {}))
        self._swapped = True  # whoever is interrupted while it waits has taken part all the same
        channel.send(lambda: comm.sendrecv(self._outgoing, self._incoming), "swap the stages' boundaries")
        size = next(iter(self._outgoing[comm.rank].values())).element_size()
        channel.sent["boundary"] += size * sum(self._elements(*pair) for pair in self._shapes)
        channel.sent["control"] += size * _TAIL * comm.size * (comm.size - 1)
        return {
            rank: {other: unfill(buffers[other], self._shapes[other, rank]) for other in self._layout.neighbors(rank)}
            for rank, buffers in self._incoming.items()
        }

    def broadcast(self, predictions: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Give every rank the predictions that the outer ranks have made.

        Returns:
            One after the other: 1-D.
        """
        channel, comm = self._channel, self._channel.comm
        for outer, buffers in self._predictions.items():
            if outer in buffers:
                fill(buffers[outer], (predictions[outer],) if outer in predictions else ())
                channel.write_slot(buffers[outer])
        channel.end_messages()
        channel.send(lambda: comm.broadcast(self._predictions), "receive the prediction")
        told = [buffers[comm.rank] for buffers in self._predictions.values()]
        for buffer in told:
            channel.count("prediction", buffer.numel() - SLOT, buffer.element_size(), comm.size - 1)
        return torch.cat([buffer[:-SLOT] for buffer in told])

    def read_status(self, scalars: torch.Tensor | None = None) -> Reading:
        """All ranks' slots; the outer ranks' last word is the one beside the prediction."""
        mine = self._channel.comm.rank
        tails = {other: buffer[-_TAIL:] for other, buffer in self._incoming[mine].items()}
        tails[mine] = next(iter(self._outgoing[mine].values()))[-_TAIL:]
        last = {outer: buffers[mine] for outer, buffers in self._predictions.items()}
        slots = {rank: last.get(rank, tails[rank])[-SLOT:] for rank in sorted(tails)}
        finite = [tails[rank][:1].isfinite() for rank in slots]
        for outer, buffer in last.items():
            finite[outer] = finite[outer] & buffer[:-SLOT].isfinite().all()
        return self._channel.read_status(slots, torch.cat(finite), scalars)

    def take_part(self) -> bool:
        if not self._swapped:
            self.sendrecv({})
            self.broadcast({})
            return True
        self.broadcast({})
        # Past the swap only outer ranks have a buffer left in which to say so.
        is_outer = self._channel.comm.rank in self._predictions
        return is_outer or any(status.is_leaving for status in self.read_status().statuses())

    def _elements(self, rank: int, other: int) -> int:
        return sum(shape.numel() for shape in self._shapes.get((rank, other), ()))

    def _fill(self, buffers: Mapping[int, torch.Tensor], boundaries: Mapping[int, Boundary]) -> None:
        """What a rank tells the others."""
        health = sum((tensor * 0).sum() for boundary in boundaries.values() for tensor in boundary)  # 0, or NaN
        for other, buffer in buffers.items():
            fill(buffer, boundaries.get(other, ()))
            buffer[-_TAIL] = health
            self._channel.write_slot(buffer)
