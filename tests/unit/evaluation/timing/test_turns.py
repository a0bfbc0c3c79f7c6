"""Engines that take turns while the cores that they leave idle are busy."""

from __future__ import annotations

import os
import threading
from typing import Any, ClassVar

import pytest

from hybridiff import ParallelConfig
from hybridiff.evaluation.timing.turns import EngineSet, Spread, take_turns


def test_spreads_have_median_quartiles_and_extremes() -> None:
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(median=3.0, low=2.0, high=4.0, least=1.0, most=5.0)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0, 2.0, 2.0)


def test_works_take_turns() -> None:
    order: list[Any] = []
    found = take_turns({"a": lambda: 1, "b": lambda: 2}, 2, lambda work, repeat: order.append((work, repeat)))
    assert found == {"a": [1, 1], "b": [2, 2]}
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


class BusyEngine:
    """An engine whose timed runs last until every other core is at work."""

    made: ClassVar[list[BusyEngine]] = []

    def __init__(self, model: str, devices: int, config: ParallelConfig, **options: Any) -> None:
        self.devices, self.config = devices, config
        self.cores = os.sched_getaffinity(0)
        self.at_work, self.runs, self.is_drained = threading.Event(), 0, False
        self.made.append(self)

    def generate(self, prompt: str, on_step: Any = None, **call: Any) -> str:
        if on_step is None:  # timed
            busy = [engine for engine in self.made if engine.at_work.wait(0 if engine is self else 0.2)]
            return f"{len(busy)} busy beside {self.devices}"
        self.runs += 1
        self.at_work.set()
        on_step(1, 2)
        if call.get("fails"):
            raise RuntimeError("a core stood idle")
        return "unheard"

    def drain(self) -> None:
        self.is_drained = True
        self.at_work.clear()

    def __enter__(self) -> BusyEngine:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> type[BusyEngine]:
    fresh = type("FreshEngine", (BusyEngine,), {"made": []})
    monkeypatch.setattr("hybridiff.launch.engine.Engine", fresh)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {4, 5, 6, 7})
    monkeypatch.setattr("os.sched_setaffinity", lambda process, cores: pinned.append(cores))
    pinned.clear()
    return fresh


pinned: list[Any] = []
WAYS = {"alone": (1, ParallelConfig("serial")), "two": (2, ParallelConfig()), "three": (3, ParallelConfig())}


def test_cores_that_are_not_timed_have_an_equal_job(engines: type[BusyEngine]) -> None:
    with EngineSet("model", WAYS, device="cpu") as ways:
        assert ways.generate("alone", "a ring") == "2 busy beside 1"
        assert all(engine.is_drained for engine in engines.made[3:])
        assert ways.generate("two", "a ring") == "1 busy beside 2"
        assert ways.generate("three", "a ring") == "0 busy beside 3"
    assert [engine.config.strategy for engine in engines.made[3:]] == ["serial", "serial"]
    assert pinned == [{5}, {4, 5, 6, 7}, {6}, {4, 5, 6, 7}]


def test_a_job_that_fails_is_not_passed_over(engines: type[BusyEngine]) -> None:
    with EngineSet("model", WAYS, device="cpu") as ways, pytest.raises(RuntimeError, match="a core stood idle"):
        ways.generate("alone", "a ring", fails=True)


@pytest.mark.parametrize(("device", "cores"), [("cuda", {0, 1, 2}), ("cpu", {0, 1})])
def test_gpus_and_ranks_that_share_cores_have_no_jobs_beside(
    engines: type[BusyEngine], monkeypatch: pytest.MonkeyPatch, device: str, cores: set[int]
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: cores)
    with EngineSet("model", WAYS, device=device) as ways:
        assert ways.generate("alone", "a ring") == "0 busy beside 1"
    assert len(engines.made) == len(WAYS)
