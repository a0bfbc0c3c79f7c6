"""The messages between the stages of a chain: predictions to all ranks, and outputs to the ranks that take them in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from ..distributed.channel import Channel
from ..distributed.gather import GatherMessages, fill, unfill
from ..distributed.messages import Messages
from ..distributed.reading import Reading
from ..schedule.kinds import StepKind
from .chain import Outputs


@dataclass(frozen=True)
class Transfer:
    """What one rank sends another in an exchange.

    Attributes:
        source: Who sends.
        target: Who receives.
        shapes: Of the tensors, by layer.
    """

    source: int
    target: int
    shapes: Mapping[int, Sequence[torch.Size]]

    @property
    def elements(self) -> int:
        """Elements of all tensors."""
        return sum(shape.numel() for shape in self.tensors)

    @property
    def tensors(self) -> list[torch.Size]:
        """Shapes of all tensors, in the order in which they are sent."""
        return [shape for shapes in self.shapes.values() for shape in shapes]


class ChainMessages(Messages):
    """A step's: one prediction or two, the outputs for the next exchange where one follows, and how ranks fare.

    Args:
        channel: The run's messages.
        plan: The kind of each step.
        sources: The ranks whose predictions a step and the one after it are answered with.
        transfers: What ranks send each other.
        boundary: A tensor with the dtype and device of what layers return.
        prediction: A tensor with the shape, dtype and device of a prediction.
    """

    def __init__(
        self,
        channel: Channel,
        plan: Sequence[StepKind],
        sources: Sequence[int],
        transfers: Sequence[Transfer],
        boundary: torch.Tensor,
        prediction: torch.Tensor,
    ) -> None:
        local = channel.comm.local_ranks
        self._channel, self._plan, self._sources, self._transfers = channel, plan, sources, transfers
        self._rounds = pair_up([(transfer.source, transfer.target) for transfer in transfers])
        sizes = {(transfer.source, transfer.target): transfer.elements for transfer in transfers}
        pairs = [pair for peers in self._rounds for pair in peers.items()]
        # Both sides of a pair send something, if only an element.
        self._outgoing = {pair: boundary.new_zeros(sizes.get(pair, 1)) for pair in pairs if pair[0] in local}
        self._incoming = {pair: boundary.new_zeros(sizes.get(pair, 1)) for pair in pairs if pair[1] in local}
        self._predictions = [{rank: torch.zeros_like(prediction) for rank in local} for _ in sources]
        self._health = GatherMessages(channel, 1, prediction)
        self._sent = 0  # of the step's messages

    def begin(self) -> None:
        self._sent = 0

    def broadcast(self, predictions: Mapping[int, torch.Tensor]) -> list[torch.Tensor]:
        """The predictions for this step and those that repeat none, on every rank; views that the next ones overwrite.

        Args:
            predictions: What local ranks predicted.
        """
        answers = self._answers()
        for number in range(answers):
            self._broadcast(number, predictions)
        return [self._predictions[number][self._channel.comm.rank] for number in range(answers)]

    def exchange(self, made: Mapping[int, Outputs]) -> dict[int, Outputs]:
        """What each local rank is given for its next stage, where one follows, as views.

        Args:
            made: What stages of local ranks returned, by rank.
        """
        if not self._is_exchanging():
            return {}
        for number in range(len(self._rounds)):
            self._swap(number, made)
        given: dict[int, Outputs] = {rank: {} for rank in self._channel.comm.local_ranks}
        for transfer in self._transfers:
            if transfer.target in given:
                tensors = iter(unfill(self._incoming[transfer.source, transfer.target], transfer.tensors))
                given[transfer.target] |= {
                    layer: tuple(islice(tensors, len(shapes))) for layer, shapes in transfer.shapes.items()
                }
        return given

    def end(self, predictions: Mapping[int, torch.Tensor]) -> None:
        """Say how the ranks fare, and whether what they predicted is finite."""
        pieces = {rank: (prediction.float() * 0.0).sum() for rank, prediction in predictions.items()}  # 0, or NaN
        self._sent += 1
        self._health.all_gather(pieces, "control")

    def read_status(self, scalars: torch.Tensor | None = None) -> Reading:
        return self._health.read_status(scalars)

    def take_part(self) -> bool:
        for send in self._in_order()[self._sent :]:
            send()
        return True

    def _in_order(self) -> list[Callable[[], object]]:
        """The messages of the step, with nothing in them."""
        order: list[Callable[[], object]] = [partial(self._broadcast, number, {}) for number in range(self._answers())]
        if self._is_exchanging():
            order += [partial(self._swap, number, {}) for number in range(len(self._rounds))]
        return [*order, partial(self.end, {})]

    def _broadcast(self, number: int, predictions: Mapping[int, torch.Tensor]) -> None:
        channel, source, buffers = self._channel, self._sources[number], self._predictions[number]
        channel.heed_unread()
        if source in predictions:
            buffers[source].copy_(predictions[source])
        self._sent += 1  # whoever is interrupted while it waits has taken part all the same
        channel.send(lambda: channel.comm.broadcast({source: buffers}), "receive the prediction")
        channel.sent["prediction"] += (channel.comm.size - 1) * buffers[channel.comm.rank].nbytes

    def _swap(self, number: int, made: Mapping[int, Outputs]) -> None:
        channel, peers = self._channel, self._rounds[number]
        mine = [rank for rank in channel.comm.local_ranks if rank in peers]
        for transfer in self._transfers:
            if peers.get(transfer.source) == transfer.target and transfer.source in made:
                outputs = made[transfer.source]
                tensors = tuple(tensor for layer in transfer.shapes for tensor in outputs[layer])
                fill(self._outgoing[transfer.source, transfer.target], tensors)
        self._sent += 1
        if mine:
            outgoing = {rank: {peers[rank]: self._outgoing[rank, peers[rank]]} for rank in mine}
            incoming = {rank: {peers[rank]: self._incoming[peers[rank], rank]} for rank in mine}
            channel.send(lambda: channel.comm.sendrecv(outgoing, incoming), "swap the stages' outputs")
        size = self._element_size
        sent = [transfer.elements for transfer in self._transfers if peers.get(transfer.source) == transfer.target]
        channel.sent["boundary"] += size * sum(sent)
        channel.sent["control"] += size * (len(peers) - len(sent))

    @property
    def _element_size(self) -> int:
        return next(iter(self._predictions[0].values())).element_size()

    def _answers(self) -> int:
        """Steps that are answered at once: this one, and one that computes nothing."""
        return 1 + (self._kind(self._channel.step + 1) is StepKind.CACHED)

    def _is_exchanging(self) -> bool:
        return self._kind(self._channel.step + self._answers()) is StepKind.PIPELINED

    def _kind(self, step: int) -> StepKind | None:
        return self._plan[step] if step < len(self._plan) else None


def pair_up(pairs: Sequence[tuple[int, int]]) -> list[dict[int, int]]:
    """Rounds in which ranks talk in pairs, each with one other: for each round the peers, by rank."""
    rounds: list[dict[int, int]] = []
    for one, other in sorted({(min(pair), max(pair)) for pair in pairs}):
        free = next((peers for peers in rounds if one not in peers and other not in peers), None)
        if free is None:
            rounds.append(free := {})
        free |= {one: other, other: one}
    return rounds
