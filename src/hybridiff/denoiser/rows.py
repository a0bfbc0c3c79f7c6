"""Which rows of a denoiser call belong to which branch, and which of them each rank evaluates."""

from __future__ import annotations

from collections.abc import Sequence

from .evaluation import Evaluation


def most_rows(rows: Sequence[slice]) -> int:
    """Rows of the rank that has the most."""
    sizes: list[int] = [own.stop - own.start for own in rows]
    return max(sizes)


def split_rows(rows: int, branches: int, ranks: int) -> list[slice] | None:
    """Each rank's rows: whole branches first, then as evenly as it goes; None where there is nothing to split.

    Args:
        rows: Rows of the call, branch after branch.
        branches: Guidance branches in the call.
        ranks: Number of ranks; where it is no multiple of `branches`, rows are dealt out without regard to branches.

    Returns:
        One slice per rank in order; a rank that is left without a row has an empty one.
    """
    if ranks == 1:
        return [slice(0, rows)]
    if rows == 1:
        return None
    if ranks % branches:
        return [slice(part * rows // ranks, (part + 1) * rows // ranks) for part in range(ranks)]
    rows_per_branch, ranks_per_branch = rows // branches, ranks // branches
    return [
        slice(
            branch * rows_per_branch + part * rows_per_branch // ranks_per_branch,
            branch * rows_per_branch + (part + 1) * rows_per_branch // ranks_per_branch,
        )
        for branch in range(branches)
        for part in range(ranks_per_branch)
    ]


def branch_rows(evaluation: Evaluation, branch: int) -> slice:
    """The rows of one guidance branch of a call: 0 is the unconditional one, 1 the conditional one."""
    rows = evaluation.rows // evaluation.branches
    return slice(branch * rows, (branch + 1) * rows)
