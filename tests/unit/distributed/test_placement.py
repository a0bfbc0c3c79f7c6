"""What torchrun says of a process, and when there is a group to join."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from hybridiff.distributed.placement import is_under_torchrun, join_torchrun, leave_process_group

CPU = torch.device("cpu")
VARIABLES = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def torchrun(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a rank; joining anything fails the test."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: pytest.fail("a group was joined"))
    return monkeypatch


@pytest.mark.parametrize("missing", VARIABLES)
def test_without_one_of_its_variables_there_is_no_torchrun(missing: str, torchrun: pytest.MonkeyPatch) -> None:
    assert is_under_torchrun()
    torchrun.delenv(missing)
    assert not is_under_torchrun()
    assert not join_torchrun(CPU, 1.0)


def test_a_single_rank_has_nobody_to_join(torchrun: pytest.MonkeyPatch) -> None:
    torchrun.setenv("WORLD_SIZE", "1")
    assert not join_torchrun(CPU, 1.0)


def test_a_group_that_somebody_made_is_taken_as_it_is(torchrun: pytest.MonkeyPatch) -> None:
    torchrun.setattr(dist, "is_initialized", lambda: True)
    assert not join_torchrun(CPU, 1.0)


def test_ranks_on_cpus_join_by_gloo_within_the_deadline(torchrun: pytest.MonkeyPatch) -> None:
    joined: list[tuple[str, float]] = []
    torchrun.setattr(
        dist, "init_process_group", lambda backend, timeout: joined.append((backend, timeout.total_seconds()))
    )
    assert join_torchrun(CPU, 7.0)
    assert joined == [("gloo", 7.0)]


def test_ranks_on_gpus_join_by_nccl_on_their_own_device(torchrun: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    torchrun.setattr(torch.cuda, "set_device", calls.append)
    torchrun.setattr(dist, "init_process_group", lambda backend, **_: calls.append(backend))
    assert join_torchrun(torch.device("cuda", 1), 7.0)
    assert calls == [torch.device("cuda", 1), "nccl"]


def test_leaving_where_there_is_no_group_is_harmless() -> None:
    leave_process_group()
    assert not dist.is_initialized()
