from __future__ import annotations

import pickle

import torch

from hybridiff.distributed.comm import LocalComm
from hybridiff.distributed.process import world_comm
from hybridiff.errors import CommError, RankError


def test_local_ranks_gather_in_order_of_rank() -> None:
    comm = LocalComm(3)
    out = torch.zeros(3, 2)
    comm.all_gather({rank: torch.full((2,), float(rank)) for rank in comm.local_ranks}, out)
    assert out.tolist() == [[0, 0], [1, 1], [2, 2]]


def test_local_ranks_gather_later_what_they_gather_now() -> None:
    comm, out = LocalComm(2), torch.zeros(2, 1)
    comm.start_all_gather({0: torch.tensor([1.0]), 1: torch.tensor([2.0])}, out)()
    assert out.tolist() == [[1], [2]]


def test_local_ranks_hand_each_its_piece() -> None:
    comm = LocalComm(2)
    incoming = {0: torch.zeros(4), 1: torch.zeros(4)}
    comm.all_to_all({0: torch.arange(4.0), 1: 10 + torch.arange(4.0)}, incoming)
    assert (incoming[0].tolist(), incoming[1].tolist()) == ([0, 1, 10, 11], [2, 3, 12, 13])


def test_local_ranks_swap_and_broadcast() -> None:
    comm = LocalComm(3)
    pairs = [(0, 1), (1, 0), (1, 2), (2, 1)]
    outgoing: dict[int, dict[int, torch.Tensor]] = {0: {}, 1: {}, 2: {}}
    incoming: dict[int, dict[int, torch.Tensor]] = {0: {}, 1: {}, 2: {}}
    for rank, other in pairs:
        outgoing[rank][other], incoming[other][rank] = torch.tensor([10.0 * rank + other]), torch.zeros(1)
    comm.sendrecv(outgoing, incoming)
    assert {(other, rank): incoming[rank][other].item() for other, rank in pairs} == {(0, 1): 1, (1, 0): 10} | {
        (1, 2): 12,
        (2, 1): 21,
    }
    buffers = {source: {rank: torch.tensor([10.0 * source + rank]) for rank in range(3)} for source in (2, 1)}
    comm.broadcast(buffers)
    assert [[buffer.item() for buffer in copies.values()] for copies in buffers.values()] == [[22] * 3, [11] * 3]


def test_one_process_plays_all_local_ranks() -> None:
    comm = LocalComm(2)
    assert comm.local_ranks == (0, 1)
    assert comm.rank == 0
    assert comm.is_leader
    assert comm.all_gather_object("thing") == ["thing", "thing"]
    assert not comm.broken


def test_local_ranks_split_into_groups_that_are_numbered_anew() -> None:
    first, second, third = LocalComm(5).split([[0, 3], [1, 2], [4]])
    assert [comm.size if comm else None for comm in (first, second, third)] == [2, 2, 1]
    assert first is not None
    assert second is not None
    out, other = torch.zeros(2, 1), torch.zeros(2, 1)
    first.all_gather({0: torch.tensor([1.0]), 1: torch.tensor([2.0])}, out)
    second.all_gather({0: torch.tensor([3.0]), 1: torch.tensor([4.0])}, other)
    assert (out.tolist(), other.tolist()) == ([[1], [2]], [[3], [4]])
    first.fail()
    assert first.broken
    assert not second.broken


def test_without_a_process_group_the_world_is_one_local_rank() -> None:
    comm = world_comm(timeout=1.0)
    assert isinstance(comm, LocalComm)
    assert comm.size == 1


def test_a_group_that_was_given_up_is_broken() -> None:
    comm = LocalComm(2)
    comm.fail()
    assert comm.broken


def test_a_message_that_did_not_come_is_a_rank_error() -> None:
    assert issubclass(CommError, RankError)
    assert str(pickle.loads(pickle.dumps(RankError("why")))) == "why"
