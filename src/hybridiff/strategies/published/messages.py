"""The messages of a pipelined step: one grouped swap of boundaries, then the prediction."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...denoiser.blocks import Boundary
from ...distributed.channel import Channel
from ...distributed.gather import fill
from ...distributed.messages import Messages
from ...distributed.reading import Reading
from ...distributed.status import SLOT

INNER_RANK, OUTER_RANK = 0, 1
"""The rank of the unconditional branch runs the inner stage, that of the conditional branch the outer one."""

PEERS = {INNER_RANK: OUTER_RANK, OUTER_RANK: INNER_RANK}


class PipelineMessages(Messages):
    """Their buffers, allocated once.

    Args:
        channel: The run's messages.
        elements: Elements of the boundary that each rank sends.
        boundary: A tensor with the dtype and device of boundaries.
        prediction: A tensor with the shape, dtype and device of the prediction of one branch.
    """

    def __init__(
        self, channel: Channel, elements: Mapping[int, int], boundary: torch.Tensor, prediction: torch.Tensor
    ) -> None:
        ranks = channel.comm.local_ranks
        self._channel = channel
        self._elements = dict(elements)
        self._outgoing = {rank: boundary.new_zeros(elements[rank] + SLOT) for rank in ranks}
        self._incoming = {rank: boundary.new_zeros(elements[PEERS[rank]] + SLOT) for rank in ranks}
        self._predictions = {rank: prediction.new_zeros(prediction.numel() + SLOT) for rank in ranks}
        self._swapped = False

    def begin(self) -> None:
        self._swapped = False

    def sendrecv(self, boundaries: Mapping[int, Boundary]) -> dict[int, torch.Tensor]:
        """Swap boundaries with the peer; what each local rank received, 1-D, as views that the next swap overwrites."""
        channel, comm = self._channel, self._channel.comm
        channel.heed_unread()
        for rank, buffer in self._outgoing.items():
            fill(buffer, boundaries.get(rank, ()))
            channel.write_slot(buffer)
        self._swapped = True  # whoever is interrupted while it waits has taken part all the same
        channel.send(lambda: comm.sendrecv(PEERS, self._outgoing, self._incoming), "swap the stages' boundaries")
        for rank in PEERS:
            channel.count("boundary", self._elements[rank], self._outgoing[comm.rank].element_size(), 1)
        return {rank: buffer[:-SLOT] for rank, buffer in self._incoming.items()}

    def broadcast(self, prediction: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Give every rank the prediction that the outer rank has made; 1-D, a view that the next one overwrites."""
        channel, comm = self._channel, self._channel.comm
        if OUTER_RANK in self._predictions:
            buffer = self._predictions[OUTER_RANK]
            fill(buffer, (prediction[OUTER_RANK],) if OUTER_RANK in prediction else ())
            channel.write_slot(buffer)
        channel.end_messages()
        channel.send(lambda: comm.broadcast(OUTER_RANK, self._predictions), "receive the prediction")
        buffer = self._predictions[comm.rank]
        channel.count("prediction", buffer.numel() - SLOT, buffer.element_size(), comm.size - 1)
        return buffer[:-SLOT]

    def read_status(self, scalars: torch.Tensor | None = None) -> Reading:
        """Both ranks' slots; the outer rank's last word is the one beside the prediction."""
        mine = self._channel.comm.rank
        slots = {
            mine: self._outgoing[mine][-SLOT:],
            PEERS[mine]: self._incoming[mine][-SLOT:],
            OUTER_RANK: self._predictions[mine][-SLOT:],
        }
        sent, received = self._outgoing[mine], self._incoming[mine]
        inner, outer = (sent, received) if mine == INNER_RANK else (received, sent)
        parts = [inner, torch.cat([outer, self._predictions[mine].to(outer)])]
        finite = torch.stack([part.isfinite().all() for part in parts])
        return self._channel.read_status(dict(sorted(slots.items())), finite, scalars)

    def take_part(self) -> bool:
        if not self._swapped:
            self.sendrecv({})
            self.broadcast({})
            return True
        self.broadcast({})
        # Past the swap only the outer rank has a buffer left in which to say so.
        return self._channel.comm.rank == OUTER_RANK or self._peer_is_leaving()

    def _peer_is_leaving(self) -> bool:
        return any(status.is_leaving for status in self.read_status().statuses())


def elements(boundary: Boundary) -> int:
    """Elements of all tensors of a boundary."""
    return sum(tensor.numel() for tensor in boundary)


def unpack(flat: torch.Tensor, shapes: list[torch.Size]) -> Boundary:
    """The tensors of a boundary out of a buffer, as views."""
    parts = torch.split(flat, [shape.numel() for shape in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
