"""Groups of real ranks: what they say to each other, and that groups side by side do not hear one another."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch

from hybridiff import ParallelConfig, parallelize
from hybridiff.distributed import connecting
from hybridiff.distributed.comm import Comm
from hybridiff.distributed.process import ProcessComm, world_comm
from support.failing import GROUP_TIMEOUT, QUICK, Planted
from support.jobs import Outcome, attempt, rank
from support.oracles import generated_one_part_after_another
from support.pipelines import build, generate
from support.ranks import run_ranks
from support.schedules import callback_at, capped

pytestmark = pytest.mark.distributed


def test_messages_of_all_ranks() -> None:
    assert run_ranks(say_everything_in_the_world, 4) == [everything(4, number, "0123") for number in range(4)]


def say_everything_in_the_world() -> Any:
    comm = world_comm(GROUP_TIMEOUT)
    assert isinstance(comm, ProcessComm)
    said = say_everything(comm)
    comm.close()
    return said


@pytest.mark.parametrize(
    "groups",
    [
        pytest.param([[0, 1], [2, 3]], id="two groups of two"),
        pytest.param([[0, 2], [1, 3]], id="interleaved"),
        pytest.param([[3, 0], [2, 1]], id="numbered in rising order, whatever that of the lists"),
        pytest.param([[0], [1], [2]], id="three groups of one, and a rank in none"),
        pytest.param([[1, 3]], id="one group, and two ranks in none"),
        pytest.param([[0, 1], [1, 2, 3]], id="a rank in two groups"),
    ],
)
def test_groups_are_numbered_anew_and_do_not_hear_each_other(groups: list[list[int]]) -> None:
    for number, said in enumerate(run_ranks(say_everything_in_groups, 4, groups)):
        for group, words in zip(map(sorted, groups), said, strict=True):
            if number in group:
                assert words == everything(len(group), group.index(number), "".join(map(str, group)))
            else:
                assert words is None


def test_groups_whose_ranks_cannot_reach_each_other_talk_by_gloo() -> None:
    first, second, *others = run_ranks(say_everything_in_groups, 4, [[0, 1]], True)
    assert [first, second] == [[everything(2, number, "01")] for number in range(2)]
    assert others == [[None], [None]]


def say_everything_in_groups(groups: list[list[int]], are_apart: bool = False) -> list[Any]:
    with pytest.MonkeyPatch.context() as patch:
        if are_apart:
            patch.setattr(connecting, "_call", refuse)
        return _say_everything_in_groups(groups, are_apart)


def refuse(*_: Any) -> socket.socket:
    raise ConnectionRefusedError


def _say_everything_in_groups(groups: list[list[int]], are_apart: bool) -> list[Any]:
    world = world_comm(GROUP_TIMEOUT)
    comms = world.split(groups)
    several = [comm for comm in comms if isinstance(comm, ProcessComm) and comm.size > 1]
    assert all((comm._wires is None) is are_apart for comm in several)
    said = [None if comm is None else say_everything(comm) for comm in comms]
    assert world.all_gather_object(rank()) == [0, 1, 2, 3]  # the whole is still there
    for comm in comms:
        if comm is not None:
            comm.close()
    world.close()
    return said


def say_everything(comm: Comm) -> dict[str, Any]:
    """Send one message of each kind, and some more in groups of other ranks; what was heard."""
    mine = comm.rank
    gathered = torch.zeros(comm.size, 2)
    comm.all_gather({mine: torch.tensor([float(mine), float(rank())])}, gathered)
    later = torch.zeros(comm.size, 1)
    wait = comm.start_all_gather({mine: torch.tensor([rank() + 0.5])}, later)
    pieces = torch.zeros(comm.size)
    comm.all_to_all({mine: 10.0 * rank() + torch.arange(float(comm.size))}, {mine: pieces})
    wait()
    swapped = torch.tensor([-1.0])
    if comm.size % 2 == 0:
        comm.sendrecv({mine: {mine ^ 1: torch.tensor([float(rank())])}}, {mine: {mine ^ 1: swapped}})
    for _ in range(rank() % 2 if comm.size == 1 else comm.size):
        comm.broadcast({0: {mine: torch.zeros(1)}})
    heard, first = torch.tensor([float(rank())]), torch.tensor([float(rank())])
    comm.broadcast({comm.size - 1: {mine: heard}, 0: {mine: first}})
    from_all = {other: torch.zeros(1 + other) for other in range(comm.size) if other != mine}
    told = {other: torch.full((1 + mine,), float(rank())) for other in from_all}
    if told:
        comm.sendrecv({mine: told}, {mine: from_all})
    return {
        "size": comm.size,
        "rank": mine,
        "is_leader": comm.is_leader,
        "gathered": gathered.tolist(),
        "gathered later": later.flatten().tolist(),
        "pieces": pieces.tolist(),
        "swapped": swapped.item(),
        "heard": [heard.item(), first.item()],
        "from all": {other: buffer.tolist() for other, buffer in from_all.items()},
        "objects": comm.all_gather_object(f"rank {rank()}"),
    }


def everything(size: int, mine: int, ranks: str) -> dict[str, Any]:
    """What a rank hears in a group of these ranks of the world, which `ranks` spells."""
    return {
        "size": size,
        "rank": mine,
        "is_leader": mine == 0,
        "gathered": [[float(number), float(name)] for number, name in enumerate(ranks)],
        "gathered later": [float(name) + 0.5 for name in ranks],
        "pieces": [10.0 * float(name) + mine for name in ranks],
        "swapped": float(ranks[mine ^ 1]) if size % 2 == 0 else -1.0,
        "heard": [float(ranks[-1]), float(ranks[0])],
        "from all": {other: [float(name)] * (1 + other) for other, name in enumerate(ranks) if other != mine},
        "objects": [f"rank {name}" for name in ranks],
    }


CONFIGS: dict[str, dict[str, Any]] = {"cfg": {}, "published": capped(6, 1, 3, split_point=1)}


@pytest.mark.parametrize("strategy", CONFIGS)
def test_two_groups_generate_an_image_each(strategy: str) -> None:
    results = run_ranks(generate_in_groups, 4, strategy, False)
    for number, outcome in enumerate(results):
        assert outcome.error is None, outcome
        assert torch.equal(outcome.value, results[number // 2 * 2].value)
        if strategy == "cfg":
            assert torch.equal(outcome.value, generated_one_part_after_another("sd3", **changes_of(number // 2)))
    assert not torch.equal(results[0].value, results[2].value)


@pytest.mark.parametrize("strategy", CONFIGS)
def test_an_error_in_one_group_is_none_of_the_other(strategy: str) -> None:
    expected = run_ranks(generate_in_groups, 4, strategy, False)[2].value
    first, second, *others = run_ranks(generate_in_groups, 4, strategy, True)
    assert first.message == "rank 1 failed in " + ("warm-up" if strategy == "cfg" else "parallel") + (
        ", step 2: Planted: callback"
    )
    assert (second.error, second.message) == ("Planted", "callback")
    assert all(torch.equal(outcome.value, expected) for outcome in others)
    assert all(outcome.seconds < QUICK for outcome in (first, second, *others))


def generate_in_groups(strategy: str, has_fault: bool) -> Outcome:
    """Two ranks generate one image, two others another; in the first group rank 1 may fail."""
    groups = world_comm(GROUP_TIMEOUT).split([[0, 1], [2, 3]])
    mine = next(number for number, comm in enumerate(groups) if comm is not None)

    def fail(_: Any) -> None:
        if has_fault and rank() == 1:
            raise Planted("callback")

    parallel = parallelize(build("sd3"), ParallelConfig(outputs="all", **CONFIGS[strategy]), comm=groups[mine])
    return attempt(lambda: generate(parallel, "sd3", **changes_of(mine), callback_on_step_end=callback_at(2, fail)))


def changes_of(group: int) -> dict[str, Any]:
    return {"num_inference_steps": 6, "prompt": ("a red ring", "two blue cubes")[group], "seed": group}
