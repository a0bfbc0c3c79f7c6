from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hybridiff.distributed.placement import Placement, is_under_torchrun, join_torchrun, leave_process_group
from hybridiff.errors import UsageError

# The second of two machines with two processes each.
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_ranks_to_be_started_are_all_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 4)
    assert Placement.resolve(4, "cuda") == Placement(4, 0, 0, 4, "cuda:0", under_torchrun=False)
    assert Placement.resolve(4, "cuda").of_rank(2) == Placement(4, 2, 2, 4, "cuda:2", under_torchrun=False)
    assert Placement.resolve(4, "cpu").of_rank(2) == Placement(4, 2, 2, 4, "cpu", under_torchrun=False)


def test_two_ranks_unless_told_otherwise_and_one_process_plays_them_in_a_simulation() -> None:
    assert Placement.resolve(device="cpu").world == 2
    assert Placement.resolve(8, "cpu", simulate=True) == Placement(1, 0, 0, 1, "cpu", under_torchrun=False)


@pytest.mark.usefixtures("torchrun")
def test_torchrun_says_where_a_process_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 2)
    assert Placement.resolve() == Placement(4, 3, 1, 2, "cuda:1", under_torchrun=True)
    assert Placement.resolve(4, "cpu") == Placement(4, 3, 1, 2, "cpu", under_torchrun=True)
    assert Placement.resolve(2, simulate=True) == Placement(1, 3, 1, 2, "cuda:1", under_torchrun=True)


@pytest.mark.usefixtures("torchrun")
def test_another_number_of_ranks_than_torchrun_started_is_refused() -> None:
    with pytest.raises(UsageError, match="2 ranks requested, torchrun started 4; use --devices 4"):
        Placement.resolve(2, "cpu")


def test_other_launchers_name_no_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_under_torchrun()
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, TORCHRUN[name])
    assert is_under_torchrun()
    with_gpus(monkeypatch, 4)
    assert Placement.resolve() == Placement(4, 3, 3, 4, "cuda:3", under_torchrun=True)


@pytest.mark.parametrize(("gpus", "device", "found"), [(0, "auto", "cpu"), (2, "auto", "cuda:0"), (2, "cpu", "cpu")])
def test_auto_takes_gpus_where_there_are_any(
    monkeypatch: pytest.MonkeyPatch, gpus: int, device: str, found: str
) -> None:
    with_gpus(monkeypatch, gpus)
    assert Placement.resolve(2, device).device == found


@pytest.mark.parametrize(
    ("gpus", "devices", "message"),
    [
        (0, 1, "1 rank requested, 0 GPUs found; use --device cpu"),
        (0, 2, "2 ranks requested, 0 GPUs found; use --device cpu"),
        (1, 3, "3 ranks requested, 1 GPU found; use --devices 1 or --device cpu"),
    ],
)
def test_fewer_gpus_than_ranks_are_refused_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, gpus: int, devices: int, message: str
) -> None:
    with_gpus(monkeypatch, gpus)
    with pytest.raises(UsageError, match=message):
        Placement.resolve(devices, "cuda")


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown device 'tpu'; choose one of auto, cuda, cpu"):
        Placement.resolve(2, "tpu")


def test_the_cpu_is_found_without_torch() -> None:
    code = "import sys; from hybridiff.distributed.placement import Placement; Placement.resolve(2, 'cpu').of_rank(1)"
    code += "; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


@pytest.mark.parametrize(("cores", "taken"), [({4, 7}, {7}), ({4}, None)])
def test_a_rank_takes_one_thread_and_a_core_where_there_are_enough(
    monkeypatch: pytest.MonkeyPatch, cores: set[int], taken: set[int] | None
) -> None:
    pinned: list[Any] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores, raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, mine: pinned.append(mine), raising=False)
    Placement.resolve(2, "cpu").of_rank(1).take_core()
    assert pinned == ([] if taken is None else [taken])
    assert torch.get_num_threads() == 1


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is done to join a group: the device that is made current, and the arguments of init_process_group."""
    done: list[Any] = []
    monkeypatch.setattr(torch.cuda, "set_device", done.append)

    def meet(method: str, rank: int, world: int, timeout: timedelta) -> Any:
        done.append((method, rank, world))
        yield dist.HashStore(), rank, world

    monkeypatch.setattr(sys.modules["torch.distributed.rendezvous"], "rendezvous", meet)
    monkeypatch.setattr(dist, "init_process_group", lambda backend, store, **options: done.append((backend, options)))
    return done


def steps(backend: str, rank: int, world: int, method: str) -> list[Any]:
    options = {"rank": rank, "world_size": world, "timeout": timedelta(seconds=9)}
    return [(method, rank, world), (backend, options)]


def test_ranks_meet_by_gloo_on_the_cpu_and_by_nccl_on_gpus(joined: list[Any]) -> None:
    assert Placement(2, 1, 1, 2, "cpu", under_torchrun=False).join(9.0, "/tmp/meet")
    assert Placement(4, 3, 1, 2, "cuda:1", under_torchrun=True).join(9.0)
    assert joined == [*steps("gloo", 1, 2, "file:///tmp/meet"), "cuda:1", *steps("nccl", 3, 4, "env://")]


def test_nobody_is_met_alone_or_where_a_group_exists(joined: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Placement(1, 0, 0, 1, "cpu", under_torchrun=True).join(9.0)
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    assert not Placement(2, 0, 0, 2, "cpu", under_torchrun=True).join(9.0)
    assert joined == []


def test_parallelize_joins_torchrun_on_the_device_of_its_pipeline(
    joined: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not join_torchrun(torch.device("cpu"), 9.0)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert join_torchrun(torch.device("cuda", 1), 9.0)
    assert joined == ["cuda:1", *steps("nccl", 3, 4, "env://")]


def test_a_group_is_left_once(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    leave_process_group()
    assert not dist.is_initialized()
    leave_process_group()
