from __future__ import annotations

import pickle

import torch

from hybridiff.distributed.comm import Comm, CommError, LocalComm, RankError


def test_local_ranks_gather_in_order_of_rank() -> None:
    comm = LocalComm(3)
    out = torch.zeros(3, 2)
    comm.gather({rank: torch.full((2,), float(rank)) for rank in comm.members}, out)
    assert out.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_local_ranks_swap_and_hand_out() -> None:
    comm = LocalComm(2)
    incoming = {0: torch.zeros(1), 1: torch.zeros(1)}
    comm.swap({0: 1, 1: 0}, {0: torch.tensor([10.0]), 1: torch.tensor([11.0])}, incoming)
    assert (incoming[0].item(), incoming[1].item()) == (11, 10)
    packets = {0: torch.tensor([1.0]), 1: torch.tensor([2.0])}
    comm.hand_out(1, packets)
    assert (packets[0].item(), packets[1].item()) == (2, 2)


def test_one_process_plays_all_local_ranks() -> None:
    comm = LocalComm(2)
    assert comm.members == (0, 1)
    assert comm.rank == 0
    assert comm.is_leader
    assert comm.exchange("thing") == ["thing", "thing"]
    assert not comm.broken


def test_without_a_process_group_the_world_is_one_local_rank() -> None:
    assert Comm.world(timeout=1.0).size == 1


def test_a_message_that_did_not_come_is_a_rank_error() -> None:
    assert issubclass(CommError, RankError)
    assert str(pickle.loads(pickle.dumps(RankError("why")))) == "why"
