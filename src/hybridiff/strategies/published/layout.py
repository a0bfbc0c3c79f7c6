"""Which rank runs what in a pipelined step: pipelines side by side, each with its images and its ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...config import BRANCHES
from ...denoiser.evaluation import Evaluation
from ...denoiser.rows import split_rows
from ...distributed.comm import Comm
from ...errors import UsageError
from ...sharding.ranks import Forward, RankGroups


@dataclass(frozen=True)
class PipelineLayout:
    """How ranks form pipelines (Jung et al. 2026, batch-level and layer-wise extensions).

    As in full steps the first half of the ranks has the unconditional branch. Ranks that lie side by side share the
    images of a pipeline: of its stages the outer ones, from the last rank on, have the conditional branch.

    Attributes:
        ranks: Number of ranks.
        pipelines: Pipelines side by side: 1 where all ranks have stages of one, more up to one for each pair of ranks.
    """

    ranks: int
    pipelines: int

    @classmethod
    def choose(cls, extension: str | None, ranks: int, images: int) -> PipelineLayout:
        """As asked for, or else as many pipelines as the images can be dealt out to evenly.

        Raises:
            UsageError: pairs cannot have as many images each.
        """
        pairs = ranks // BRANCHES
        if extension == "batch" and images % pairs:
            raise UsageError(
                f"{images} images cannot be dealt out evenly to {pairs} pairs of ranks; generate a multiple of {pairs} "
                "at a time, or use published.extension=layers"
            )
        return cls(ranks, {"batch": pairs, "layers": 1}.get(extension or "", math.gcd(images, pairs)))

    @property
    def stages(self) -> int:
        """Stages of each pipeline, one a rank."""
        return self.ranks // self.pipelines

    @property
    def replicas(self) -> int:
        """Ranks of a pipeline that have the same branch: in full steps they evaluate the same rows."""
        return self.stages // BRANCHES

    @property
    def outer_ranks(self) -> list[int]:
        """The ranks that make the predictions, in the order of the images."""
        return [rank for rank in range(self.ranks) if self.stage(rank) == 0]

    def pipeline(self, rank: int) -> int:
        """The pipeline that a rank is part of."""
        return rank // self.replicas % self.pipelines

    def stage(self, rank: int) -> int:
        """The stage that a rank runs, 0 for the outer one."""
        branch = rank // self.replicas // self.pipelines
        return (BRANCHES - branch) * self.replicas - 1 - rank % self.replicas

    def neighbors(self, rank: int) -> dict[int, int]:
        """The ranks whose stages are next to that of a rank, each with the boundary between the two."""
        stage = self.stage(rank)
        return {
            other: min(stage, self.stage(other))
            for other in range(self.ranks)
            if self.pipeline(other) == self.pipeline(rank) and abs(self.stage(other) - stage) == 1
        }

    def rows(self, rank: int, evaluation: Evaluation) -> slice:
        """The rows of a rank, in full steps and in pipelined ones."""
        rows = split_rows(evaluation.rows, evaluation.branches, self.ranks // self.replicas)
        assert rows is not None
        return rows[rank // self.replicas]


class ReplicaGroups(RankGroups):
    """Ranks in groups each of whose members evaluates all rows of its group, and tells a part of what it predicts.

    So each of them has the boundaries of the rows that its stage goes on with.

    Args:
        comm: The ranks.
        replicas: Ranks of a group.
    """

    def __init__(self, comm: Comm, replicas: int) -> None:
        super().__init__(comm, wanted=1)
        self._replicas = replicas

    def count(self, evaluation: Evaluation) -> int:
        return self._replicas

    def evaluate(
        self,
        evaluation: Evaluation,
        rows: Sequence[slice],
        shards: int,
        forward: Forward,
        stage: Forward | None = None,
    ) -> dict[int, torch.Tensor]:
        owned = {rank: rows[rank // shards] for rank in self._comm.local_ranks}
        return {rank: forward(evaluation, rank, own) for rank, own in owned.items() if own.stop > own.start}
