"""What is opened again and again: nothing is left behind, neither here nor in ranks."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hybridiff import ParallelConfig, RankError, parallelize
from hybridiff.sharding.place import current_group
from support.engines import PROMPT, start
from support.forking import server_pid
from support.jobs import rank
from support.pipelines import build, generate
from support.ranks import Ranks

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(sys.platform != "linux", reason="what a process holds is read from /proc"),
]


def held(pid: int) -> dict[str, int]:
    """How many files, threads, children and boards a process has."""
    process = Path(f"/proc/{pid}")
    return {
        "files": len(os.listdir(process / "fd")),
        "threads": len(os.listdir(process / "task")),
        "children": sum(len((task / "children").read_text().split()) for task in (process / "task").iterdir()),
        "boards": (process / "maps").read_text().count("memfd:hybridiff"),
    }


def test_engines_leave_nothing_behind() -> None:
    after = []
    for _ in range(4):
        with start() as engine:
            engine.generate(PROMPT, seed=0, num_inference_steps=2)
            folder = engine._ranks._group._folder  # type: ignore[union-attr]
            assert folder.exists()
        assert not folder.exists()
        after.append((held(os.getpid()), held(server_pid())))
    assert after[1:] == after[:1] * 3
    assert after[0][1]["children"] == 0


def held_after(cycles: int) -> dict[str, int]:
    """What a rank holds once a pipeline was parallel so many times, with long messages and groups within the ranks."""
    pipe = build("sd3")
    for _ in range(cycles):
        with parallelize(pipe, ParallelConfig(strategy="cfg", shards=2, outputs="all", timeout=60.0)) as parallel:
            generate(parallel, "sd3")
            meanwhile = held(os.getpid())
        gc.collect()
        assert meanwhile["boards"] > held(os.getpid())["boards"] == 0
    return held_at_last()


def held_at_last(seconds: float = 1.0) -> dict[str, int]:
    """What this process holds once gloo has closed its connections, in the background."""
    deadline = time.monotonic() + seconds
    after = held(os.getpid())
    while time.monotonic() < deadline:
        now = held(os.getpid())
        after = {kind: min(after[kind], now[kind]) for kind in now}
        time.sleep(0.05)
    return after


def held_after_failures(failures: int) -> dict[str, int]:
    """What a rank holds once so many requests have failed in the middle of the network on rank 1, and one has not."""
    pipe = build("sd3")
    left = failures

    def fail(*_: Any) -> None:
        nonlocal left
        if left and rank() == 1 and current_group() is not None:
            left -= 1
            raise MemoryError

    pipe.transformer.transformer_blocks[1].register_forward_pre_hook(fail)
    with parallelize(pipe, ParallelConfig(strategy="cfg", shards=2, outputs="all", timeout=60.0)) as parallel:
        for _ in range(failures + 1):
            with contextlib.suppress(MemoryError, RankError):
                generate(parallel, "sd3", num_inference_steps=2)
        gc.collect()
        assert left == 0 or rank() == 0
        return held_at_last(3.0)


def test_requests_that_failed_leave_nothing_behind() -> None:
    with Ranks(2) as started:
        once, often = (started.run(held_after_failures, failures) for failures in (1, 6))
    for before, after in zip(once, often, strict=True):
        assert after["boards"] == before["boards"]
        assert after["files"] - before["files"] < 5, "each failure that leaves its connections leaves four or more"
        assert after["threads"] - before["threads"] < 5


@pytest.mark.parametrize("ranks", [2, 4])
def test_pipelines_that_were_parallel_leave_nothing_behind(ranks: int) -> None:
    with Ranks(ranks) as started:
        first = started.run(held_after, 1)
        assert started.run(held_after, 3) == first
