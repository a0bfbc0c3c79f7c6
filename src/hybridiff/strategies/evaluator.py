"""Evaluates a denoiser call on all ranks: each takes its rows, one all-gather gives every rank the whole prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..denoiser.evaluation import Evaluation
from ..denoiser.rows import most_rows, split_rows
from ..distributed.channel import Channel
from ..distributed.gather import GatherMessages, form_groups
from ..distributed.reading import Reading
from ..report.speedup import RowPartition
from ..report.timeline import Timeline
from ..schedule.kinds import StepKind
from ..sharding.ranks import Forward, RankGroups


class BranchEvaluator:
    """Evaluates calls by rows: whole branches first; with more ranks than branches each one's images are split.

    Args:
        channel: The messages of the run.
        timeline: Where work is recorded.
        steps: Number of steps of the run.
        groups: The ranks as groups that share rows; None where each rank has rows of its own.

    Attributes:
        partition: How the rows of guided calls are shared; None before the first.
    """

    def __init__(self, channel: Channel, timeline: Timeline, steps: int, groups: RankGroups | None = None) -> None:
        self.partition: RowPartition | None = None
        self.channel = channel
        self.timeline = timeline
        self._steps = steps
        self._groups = groups or RankGroups(channel.comm, wanted=1)
        self._messages: GatherMessages | None = None
        self._dtype: torch.dtype | None = None  # of predictions, for ranks without rows
        self._row_shape: torch.Size | None = None  # of the prediction of one row

    def evaluate(
        self, evaluation: Evaluation, forward: Forward | None = None, stage: Forward | None = None
    ) -> torch.Tensor:
        """The prediction of a call: (rows, C, H, W), the same on every rank.

        Args:
            evaluation: The call.
            forward: What a rank runs on its rows; the whole network unless given.
            stage: What of the network that is, to be run again where it is measured; all of it unless given.
        """
        if evaluation.is_whole:
            self.partition = RowPartition(evaluation.rows, evaluation.rows, branches=evaluation.branches)
            return self.replicate(evaluation)
        shards = self._groups.count(evaluation)
        rows = split_rows(evaluation.rows, evaluation.branches, self.channel.comm.size // shards)
        if rows is None:
            return self.replicate(evaluation, forward)
        if self.partition is None:
            self.partition = RowPartition(evaluation.rows, most_rows(rows), None, evaluation.branches, shards)
        return self._gather(evaluation, rows, forward or self.run, shards, stage)

    def evaluate_extra(self, evaluation: Evaluation) -> torch.Tensor:
        """The same for a further call of a step, which has the rows of one branch."""
        rows = split_rows(evaluation.rows, 1, self.channel.comm.size)
        if rows is None or not self._has_room(most_rows(rows)):
            return evaluation.run()
        if self.partition is not None:
            self.partition = replace(self.partition, largest_extra=most_rows(rows))
        prediction = self._gather(evaluation, rows, self.run)
        self.read_status()
        return prediction

    def replicate(self, evaluation: Evaluation, forward: Forward | None = None) -> torch.Tensor:
        """The same by every rank on its own; errors and interrupts reach all ranks all the same."""
        if self._messages is None:
            self._open(1, evaluation.sample)  # first, so that a rank that fails leaves by way of a message
        self.channel.show(evaluation.sample)
        rows = slice(0, evaluation.rows)
        prediction = forward(evaluation, self.channel.comm.rank, rows) if forward else evaluation.run()
        assert self._messages is not None
        self._messages.heartbeat(prediction)
        return prediction

    def read_status(self, scalars: torch.Tensor | None = None) -> Reading:
        """Begin to read how the ranks fared in the latest call, and scalars (1-D) with it."""
        assert self._messages is not None
        return self._messages.read_status(scalars)

    def run(self, evaluation: Evaluation, rank: int, rows: slice) -> torch.Tensor:
        """Some rows through the whole network."""
        with self.timeline.span(rank, "whole network, own branch", "stage"):
            return evaluation.run(rows)

    def _gather(
        self,
        evaluation: Evaluation,
        rows: Sequence[slice],
        forward: Forward,
        shards: int = 1,
        stage: Forward | None = None,
    ) -> torch.Tensor:
        """The prediction of all rows; ranks that share some each say a part of what they predict."""
        if shards > 1 and shards not in self._groups.made:
            device = evaluation.sample.device
            form_groups(self.channel, self._messages, lambda: self._groups.make(shards, device))
        predictions = self._groups.evaluate(evaluation, rows, shards, forward, stage)
        self.channel.sent["shards"] += self._groups.take_sent()
        dtype, row_shape = self._agree_on_rows(predictions)
        elements = -(-most_rows(rows) * row_shape.numel() // shards)
        if self._messages is None:
            self._open(elements, evaluation.sample)
        assert self._messages is not None
        assert elements <= self._messages.room, f"{evaluation.rows} rows do not fit"
        self.channel.show(evaluation.sample)
        pieces = {
            rank: prediction.reshape(-1)[rank % shards * elements :][:elements]
            for rank, prediction in predictions.items()
        }
        said = self._messages.all_gather(pieces)[:, :elements].reshape(len(rows), shards * elements)
        parts = [
            group[: (own.stop - own.start) * row_shape.numel()].view(-1, *row_shape)
            for group, own in zip(said, rows, strict=True)
        ]
        return torch.cat(parts).to(dtype)

    def _agree_on_rows(self, pieces: Mapping[int, torch.Tensor]) -> tuple[torch.dtype, torch.Size]:
        """Dtype and shape of the prediction of one row, which ranks without rows do not see.

        Told once, by small objects; a rank that fails before is heard then.
        """
        seen = next(((piece.dtype, piece.shape[1:]) for piece in pieces.values()), None)
        if self._row_shape is None:
            told = self.channel.consensus(seen, "agree on the form of predictions")
            self._dtype, self._row_shape = next(other for other in told if other is not None)
        elif seen is not None:
            self._dtype = seen[0]  # autocast may begin or end
        assert self._dtype is not None
        return self._dtype, self._row_shape

    def _open(self, elements: int, like: torch.Tensor) -> None:
        self._messages = GatherMessages(self.channel, elements, like)
        self.channel.open(self._steps, like, {StepKind.FULL: self._messages, StepKind.REUSE: self._messages})

    def _has_room(self, rows: int) -> bool:
        """Whether so many rows of a rank fit into the messages that there are."""
        shape, messages = self._row_shape, self._messages
        return shape is not None and messages is not None and rows * shape.numel() <= messages.room
