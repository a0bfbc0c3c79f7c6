from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hybridiff import ParallelConfig, parallelize
from hybridiff.distributed.comm import LocalComm
from hybridiff.strategies.cfg import split_rows
from support.oracles import drawn_one_part_after_another, relative_difference
from support.pipelines import build, draw


@given(pictures=st.integers(1, 12), ranks_per_branch=st.integers(1, 6), branches=st.sampled_from([1, 2]))
def test_every_row_goes_to_one_rank_of_its_branch(pictures: int, ranks_per_branch: int, branches: int) -> None:
    shares = split_rows(pictures * branches, branches, ranks_per_branch * branches)
    if pictures * branches == 1 and ranks_per_branch > 1:
        assert shares is None
        return
    assert shares is not None
    assert [row for share in shares for row in range(share.start, share.stop)] == list(range(pictures * branches))
    for rank, share in enumerate(shares):
        branch = rank // ranks_per_branch
        assert all(row // pictures == branch for row in range(share.start, share.stop))
    sizes = [share.stop - share.start for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_two_ranks_have_a_branch_each() -> None:
    assert split_rows(6, 2, 2) == [slice(0, 3), slice(3, 6)]


def test_one_row_cannot_be_split() -> None:
    assert split_rows(1, 1, 2) is None


class SwappingComm(LocalComm):
    """Hands out the packets of the ranks in the wrong order."""

    def gather(self, packets: Mapping[int, torch.Tensor], out: torch.Tensor) -> None:
        super().gather(packets, out)
        out.copy_(out.flip(0))


@pytest.mark.parametrize("name", ["sdxl", "sdxl two levels", "sd15", "sd3", "sd3.5"])
def test_predictions_joined_in_the_wrong_order_would_be_noticed(name: str) -> None:
    expected = drawn_one_part_after_another(name)
    right = draw(parallelize(build(name), ParallelConfig(simulate=True)), name)
    wrong = draw(parallelize(build(name), ParallelConfig(simulate=True), comm=SwappingComm(2)), name)
    assert torch.equal(right, expected)
    assert relative_difference(wrong, expected) > 0.05  # five hundred times the tolerance of any comparison


@pytest.mark.parametrize("name", ["sdxl", "sdxl two levels", "sd15", "sd3", "sd3.5"])
def test_the_branches_of_the_tiny_pipelines_differ(name: str) -> None:
    parallel = parallelize(build(name), ParallelConfig(simulate=True))
    draw(parallel, name)
    assert parallel.report is not None
    assert all(step.discrepancy is not None and step.discrepancy > 0.01 for step in parallel.report.steps)
    assert parallel.report.steps[0].discrepancy > 0.1  # type: ignore[operator]
