"""The ranks of the tests: what goes wrong on one must fail the test, in time, and leave no process behind."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from support.jobs import rank
from support.ranks import RanksFailed, run_ranks

pytestmark = pytest.mark.distributed


def test_ranks_return_in_order_and_share_a_group() -> None:
    assert run_ranks(sum_of_ranks, 3, 10.0) == [[33.0, 0], [33.0, 1], [33.0, 2]]


def sum_of_ranks(summand: float) -> list[float]:
    total = torch.tensor(summand + rank())
    dist.all_reduce(total)
    return [total.item(), rank()]


def test_an_error_fails_the_test_with_its_traceback() -> None:
    with pytest.raises(RanksFailed, match=r"(?s)rank 1.*in raise_on_rank_1.*KeyError: 'lost'"):
        run_ranks(raise_on_rank_1, 2)


def raise_on_rank_1() -> None:
    if rank() == 1:
        raise KeyError("lost")


def test_a_rank_that_dies_or_hangs_fails_the_test_in_time() -> None:
    with pytest.raises(RanksFailed, match=r"(?s)rank 0 ---\ndid not come to an end in time.*rank 1 ---\ndied without"):
        run_ranks(hang_or_die, 2, timeout=10.0)


def hang_or_die() -> None:
    if rank() == 1:
        os._exit(1)
    time.sleep(600)


def test_no_rank_outlives_its_call() -> None:
    pids = run_ranks(os.getpid, 2)
    alive = run_ranks(hang_on_rank_1, 2, may_die=[1])
    assert alive[1] is None
    for pid in [*pids, *alive[0]]:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def hang_on_rank_1() -> list[int]:
    pids: list[int | None] = [None, None]
    dist.all_gather_object(pids, os.getpid())
    if rank() == 1:
        time.sleep(600)
    return [pid for pid in pids if pid is not None]
