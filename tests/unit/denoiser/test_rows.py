from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hybridiff.denoiser.rows import branch_rows, most_rows, split_rows
from support.networks import evaluation_of, sdxl_unet


@given(images=st.integers(1, 12), ranks=st.integers(1, 9), branches=st.integers(1, 4))
def test_every_row_goes_to_one_rank_and_the_largest_share_is_small(images: int, ranks: int, branches: int) -> None:
    rows = split_rows(images * branches, branches, ranks)
    if images * branches == 1 < ranks:
        assert rows is None
        return
    assert rows is not None
    assert len(rows) == ranks
    assert [row for own in rows for row in range(own.start, own.stop)] == list(range(images * branches))
    assert most_rows(rows) == -(-images * branches // ranks)
    assert rows[0].stop > 0, "the leader is never without"


@given(images=st.integers(1, 12), ranks_per_branch=st.integers(1, 6), branches=st.integers(1, 4))
def test_every_row_goes_to_one_rank_of_its_branch(images: int, ranks_per_branch: int, branches: int) -> None:
    rows = split_rows(images * branches, branches, ranks_per_branch * branches)
    if images * branches == 1 and ranks_per_branch > 1:
        assert rows is None
        return
    assert rows is not None
    assert [row for own in rows for row in range(own.start, own.stop)] == list(range(images * branches))
    for rank, own in enumerate(rows):
        branch = rank // ranks_per_branch
        assert all(row // images == branch for row in range(own.start, own.stop))
    sizes = [own.stop - own.start for own in rows]
    assert max(sizes) - min(sizes) <= 1
    assert most_rows(rows) == max(sizes)


def test_two_ranks_have_a_branch_each() -> None:
    assert split_rows(6, 2, 2) == [slice(0, 3), slice(3, 6)]


def test_one_row_cannot_be_split() -> None:
    assert split_rows(1, 1, 2) is None


def test_one_rank_has_all_rows_of_both_branches() -> None:
    assert split_rows(6, 2, 1) == [slice(0, 6)]
    assert split_rows(1, 1, 1) == [slice(0, 1)]


def test_a_rank_without_a_row_has_an_empty_slice() -> None:
    assert split_rows(2, 2, 4) == [slice(0, 1), slice(1, 1), slice(1, 2), slice(2, 2)]
    assert split_rows(2, 2, 3) == [slice(0, 1), slice(1, 2), slice(2, 2)]


@pytest.mark.parametrize(
    ("rows", "branches", "ranks", "sizes"),
    [
        (6, 2, 3, [2, 2, 2]),
        (3, 3, 3, [1, 1, 1]),
        (3, 3, 2, [2, 1]),
        (6, 3, 4, [2, 2, 1, 1]),
        (8, 4, 2, [4, 4]),
        (6, 2, 4, [2, 1, 2, 1]),
        (4, 2, 8, [1, 0, 1, 0, 1, 0, 1, 0]),
    ],
)
def test_ranks_and_branches_that_do_not_fit_each_other(rows: int, branches: int, ranks: int, sizes: list[int]) -> None:
    parts = split_rows(rows, branches, ranks)
    assert parts is not None
    assert [part.stop - part.start for part in parts] == sizes


def test_the_rows_of_a_branch() -> None:
    evaluation = evaluation_of(sdxl_unet(), 6, 16, 16)
    assert [branch_rows(evaluation, branch) for branch in (0, 1)] == [slice(0, 3), slice(3, 6)]
