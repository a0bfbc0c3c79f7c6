"""Groups of processes on GPUs, of whose messages the host never waits for one by itself; no GPU is needed here."""

from __future__ import annotations

from typing import Any

import pytest
import torch.distributed as dist

from hybridiff.distributed import process
from hybridiff.distributed.process import ProcessComm


class Group:
    """A process group of NCCL's."""

    def __init__(self, done: list[str]) -> None:
        self._done = done

    def abort(self) -> None:
        self._done.append("abort")


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "new_group", lambda *_, backend=None, **__: None if backend == "gloo" else Group(done))
    monkeypatch.setattr(dist, "destroy_process_group", lambda group: done.append("end" if group else "end of gloo's"))
    monkeypatch.setattr(process.torch.cuda, "is_available", lambda: True)
    return done


@pytest.mark.parametrize(
    ("options", "expected"),
    [({}, ["end of gloo's", "end"]), ({"aborts": True}, ["abort", "end of gloo's", "end"])],
    ids=["at the end", "after a failure"],
)
def test_kernels_that_wait_for_a_lost_rank_end_before_their_group(
    done: list[str], options: dict[str, Any], expected: list[str]
) -> None:
    comm = ProcessComm(timeout=1.0)
    comm.close(**options)
    comm.close(**options)  # is over already
    assert done == expected


def test_a_group_that_broke_is_aborted_and_not_waited_for(done: list[str]) -> None:
    comm = ProcessComm(timeout=1.0)
    comm.fail()
    comm.close()
    assert done == ["abort"]
