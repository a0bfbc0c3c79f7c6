from __future__ import annotations

import time

import pytest
import torch

from hybridiff.utils.clock import elapsed, mark, synchronize, timed

CPU = torch.device("cpu")


def test_work_is_done_once_and_its_time_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5.0, 7.5])
    done: list[int] = []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert timed(lambda: done.append(1), CPU) == 2.5
    assert done == [1]


def test_marks_of_a_cpu_are_times_of_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([5.0, 7.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert elapsed(mark(CPU), mark(CPU)) == 2.5


def test_of_a_gpu_the_work_in_its_stream_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waits.append)
    device = torch.device("cuda", 1)
    synchronize(CPU)
    assert waits == []
    timed(lambda: waits.append(CPU), device)
    assert waits == [device, CPU, device]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_marks_of_a_gpu_are_apart_as_long_as_the_work_between_them() -> None:
    device = torch.device("cuda", 0)
    matrix = torch.ones(4096, 4096, device=device)

    def work() -> None:
        for _ in range(20):
            matrix @ matrix

    work()
    marks = []

    def marked() -> None:
        marks.append(mark(device))
        work()
        marks.append(mark(device))

    seconds = timed(marked, device)
    assert 0.0 < elapsed(*marks) <= seconds
