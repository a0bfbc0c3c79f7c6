"""Which rows of a denoiser call belong to which branch, and which of them each rank evaluates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from .evaluation import Evaluation


def most_rows(rows: Sequence[slice]) -> int:
    """Rows of the rank that has the most."""
    sizes: list[int] = [own.stop - own.start for own in rows]
    return max(sizes)


def split_rows(rows: int, branches: int, ranks: int) -> list[slice] | None:
    """Each rank's rows, so that the largest share is as small as can be; None where there is nothing to split.

    A rank has rows of one branch only where that makes no share larger.

    Args:
        rows: Rows of the call, branch after branch.
        branches: Guidance branches in the call.
        ranks: Number of ranks.

    Returns:
        One slice per rank in order; a rank that is left without a row has an empty one.
    """
    if rows == 1 < ranks:
        return None
    images, share = rows // branches, -(-rows // ranks)
    if branches * -(-images // share) > ranks:
        return _deal(0, rows, ranks)
    return [
        part
        for branch in range(branches)
        for part in _deal(branch * images, images, (ranks + branch) // branches)  # they sum up to `ranks`
    ]


def _deal(start: int, rows: int, ranks: int) -> list[slice]:
    """So many rows, from one on, dealt out to ranks as evenly as it goes, the first rank never without."""
    ends = [start - (-rank * rows // ranks) for rank in range(ranks + 1)]
    return [slice(*own) for own in itertools.pairwise(ends)]


def branch_rows(evaluation: Evaluation, branch: int) -> slice:
    """The rows of one guidance branch of a call: 0 is the unconditional one, 1 the conditional one."""
    rows = evaluation.rows // evaluation.branches
    return slice(branch * rows, (branch + 1) * rows)
