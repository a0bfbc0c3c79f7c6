"""The message of full and reuse steps: one all-gather hands every rank the predictions of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from .channel import Channel
from .messages import Messages
from .reading import Reading
from .status import SLOT


class GatherMessages(Messages):
    """The all-gather of a run, its buffers allocated once.

    Args:
        channel: The run's messages.
        elements: Most elements of a prediction that a rank has to say.
        like: A tensor with the dtype and device of the buffers.
    """

    def __init__(self, channel: Channel, elements: int, like: torch.Tensor) -> None:
        self.room = elements
        self._channel = channel
        self._buffers = {rank: like.new_zeros(elements + SLOT) for rank in channel.comm.local_ranks}
        self._gathered = like.new_zeros(channel.comm.size, elements + SLOT)

    def all_gather(self, pieces: Mapping[int, torch.Tensor], purpose: str = "prediction") -> torch.Tensor:
        """Hand every rank the pieces of all ranks.

        Args:
            pieces: What each local rank has to say, of any shape, at most `room` elements; a rank without an entry has
                nothing.
            purpose: What the bytes are counted as.

        Returns:
            (size, room); a view that the next one overwrites.

        Raises:
            RankError: the message before this one said that the run cannot go on, or this one did not come.
        """
        channel, comm = self._channel, self._channel.comm
        channel.heed_unread()
        for rank, buffer in self._buffers.items():
            fill(buffer, (pieces[rank],) if rank in pieces else ())
            channel.write_slot(buffer)
        channel.end_messages()  # whoever is interrupted while it waits has taken part all the same
        channel.send(lambda: comm.all_gather(self._buffers, self._gathered), "gather the predictions")
        channel.count(purpose, self.room, self._gathered.element_size(), comm.size * (comm.size - 1))
        return self._gathered[:, :-SLOT]

    def read_status(self, scalars: torch.Tensor | None = None) -> Reading:
        finite = self._gathered[:, :-SLOT].isfinite().all(1)
        slots = {rank: self._gathered[rank, -SLOT:] for rank in range(len(self._gathered))}
        return self._channel.read_status(slots, finite, scalars)

    def heartbeat(self, prediction: torch.Tensor) -> None:
        """Tell each other how the ranks fare in a step that has nothing to send: whether a prediction is finite."""
        health = (prediction.float() * 0.0).sum()  # 0, or NaN
        self.all_gather(dict.fromkeys(self._buffers, health), purpose="control")

    def begin(self) -> None:
        pass

    def take_part(self) -> bool:
        self.all_gather({}, purpose="control")
        return True


def form_groups(channel: Channel, messages: GatherMessages | None, form: Callable[[], None]) -> None:
    """Hear all ranks within a step before they form groups, where one that failed would leave the others waiting.

    Args:
        channel: The run's messages.
        messages: What the step is made of; None before the first message.
        form: Forms the groups.

    Raises:
        RankError: a rank failed or left, or did not come.
    """
    if messages is None:
        channel.consensus(None, "form groups")
    else:
        messages.take_part()
        messages.read_status().values()
        channel.begin_step(channel.step, channel.kind, channel.is_guided)  # its own message is still to come
    channel.send(form, "form groups")


def fill(buffer: torch.Tensor, tensors: tuple[torch.Tensor, ...]) -> None:
    """Put tensors into a buffer, one after the other."""
    start = 0
    for tensor in tensors:
        buffer[start : start + tensor.numel()].copy_(tensor.reshape(-1))
        start += tensor.numel()


def unfill(buffer: torch.Tensor, shapes: Sequence[torch.Size]) -> tuple[torch.Tensor, ...]:
    """What `fill` has put into a buffer, as views."""
    sizes = [shape.numel() for shape in shapes]
    parts = torch.split(buffer[: sum(sizes)], sizes)
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
