"""Condition-based partitioning: each guidance branch on its own ranks (Jung et al. 2026, Sec. 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..denoiser.call import Evaluation
from ..distributed.comm import RankError
from ..numerics.guidance import discrepancy
from ..report.speedup import RowShares
from .base import Answer, Strategy


class CfgStrategy(Strategy):
    """Every rank evaluates its share of one branch; one gather a step gives all ranks the whole prediction.

    With more ranks than branches the rows of a branch, its pictures, are split over the branch's ranks.
    """

    name = "cfg"

    def predict(self, evaluation: Evaluation, step: int) -> Answer:
        shares = split_rows(evaluation.rows, evaluation.branches, self.comm.size)
        if shares is None:
            return Answer(self._everywhere(evaluation), None)
        if evaluation.branches == 2 and self.shares is None:
            self.shares = RowShares(evaluation.rows, largest_share(shares))
        prediction = self._gather_shares(evaluation, step, shares)
        if evaluation.branches == 1:
            self.channel.settle()
            return Answer(prediction, None)
        return self._settled(prediction)

    def _settled(self, prediction: torch.Tensor) -> Answer:
        """The answer of a guided step that all ranks have come through."""
        unconditional, conditional = prediction.chunk(2)  # (2B, C, H, W) -> 2 x (B, C, H, W)
        (measured,) = self.channel.settle(discrepancy(unconditional, conditional).reshape(1))
        self._require_finite(prediction, measured)
        return Answer(prediction, measured)

    def _require_finite(self, prediction: torch.Tensor, measured: float) -> None:
        """Raise, on every rank alike, where the network of some rank returned what is no number."""
        if math.isfinite(measured):
            return
        shares = split_rows(len(prediction), 2, self.comm.size) or []
        ranks = [rank for rank, share in enumerate(shares) if not prediction[share].isfinite().all()]
        if ranks:
            raise RankError(
                f"rank {ranks[0]} predicted NaN or infinity in {self.channel.position()}; if the network runs in "
                "float16, try bfloat16 or float32"
            )

    def predict_extra(self, evaluation: Evaluation, step: int) -> torch.Tensor:
        shares = split_rows(evaluation.rows, 1, self.comm.size)
        if shares is None:
            return evaluation.run()
        if self.shares is not None:
            self.shares = replace(self.shares, largest_extra=largest_share(shares))
        prediction = self._gather_shares(evaluation, step, shares)
        self.channel.settle()
        return prediction

    def _everywhere(self, evaluation: Evaluation) -> torch.Tensor:
        """Evaluate one row that cannot be split on every rank; errors and interrupts reach all of them all the same."""
        if not self.channel.is_open:
            self.channel.open(0, evaluation.sample)
        prediction = evaluation.run()
        self.channel.beat()
        return prediction

    def _gather_shares(self, evaluation: Evaluation, step: int, shares: list[slice]) -> torch.Tensor:
        """Evaluate the shares of this process's ranks and join all shares: (rows, C, H, W)."""
        row_elements = torch.Size(evaluation.row_shape).numel()
        elements = largest_share(shares) * row_elements
        if not self.channel.is_open:
            self.channel.open(elements, evaluation.sample)
        elif elements > self.channel.room:
            raise ValueError(
                f"step {step} evaluates {evaluation.rows} rows, more than the messages of this run hold: guidance may "
                "end in a run, but not begin in its middle"
            )
        pieces: dict[int, torch.Tensor] = {}
        for rank in self.comm.members:
            if shares[rank].stop > shares[rank].start:
                pieces[rank] = self._evaluate_share(evaluation, rank, shares[rank])
        gathered = self.channel.gather(pieces)
        rows = [
            packet[: (share.stop - share.start) * row_elements].view(-1, *evaluation.row_shape)
            for packet, share in zip(gathered, shares, strict=True)
        ]
        # Under autocast the network answers in another dtype than the sample's, which is that of the packets.
        dtype = next((piece.dtype for piece in pieces.values()), evaluation.sample.dtype)
        return torch.cat(rows).to(dtype)

    def _evaluate_share(self, evaluation: Evaluation, rank: int, share: slice) -> torch.Tensor:
        """One rank's rows through the whole network; strategies that cut it keep its boundaries here."""
        with self.context.timeline.span(rank, "whole network, own branch", "stage"):
            return evaluation.run(share)


def largest_share(shares: Sequence[slice]) -> int:
    """Rows of the rank that has the most."""
    sizes: list[int] = [share.stop - share.start for share in shares]
    return max(sizes)


def split_rows(rows: int, branches: int, ranks: int) -> list[slice] | None:
    """Each rank's rows: whole branches first, then as evenly as it goes; None where there is nothing to split.

    Args:
        rows: Rows of the call, branch after branch.
        branches: Guidance branches in the call.
        ranks: Number of ranks, a multiple of `branches`, or 1 for all rows at once.

    Returns:
        One slice a rank in order; a rank that is left without a row has an empty one.
    """
    if ranks == 1:
        return [slice(0, rows)]
    if rows == 1:
        return None
    rows_per_branch, ranks_per_branch = rows // branches, ranks // branches
    return [
        slice(
            branch * rows_per_branch + part * rows_per_branch // ranks_per_branch,
            branch * rows_per_branch + (part + 1) * rows_per_branch // ranks_per_branch,
        )
        for branch in range(branches)
        for part in range(ranks_per_branch)
    ]
