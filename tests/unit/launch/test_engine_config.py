"""What an Engine refuses before it starts anything, and how calls wait for one another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from hybridiff import Engine, ParallelConfig
from hybridiff.errors import EngineError, UsageError

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(spec: Any) -> None:
        raise AssertionError("ranks were started")

    monkeypatch.setattr("hybridiff.launch.engine.RankGroup.start", refuse)
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


class FakeGroup:
    """Ranks that answer every call with its number, once it may."""

    ranks = ()
    is_usable = True
    may_answer = threading.Event()
    calls: ClassVar[list[int]] = []

    def generate(self, call: bytes, on_step: Any) -> int:
        self.calls.append(len(call))
        if on_step is not None:
            on_step(1, 1)
        assert self.may_answer.wait(10.0)
        return len(self.calls)

    def drain(self) -> None:
        pass

    end = drain


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr("hybridiff.launch.engine.RankGroup.start", lambda spec: FakeGroup())
    FakeGroup.calls.clear()
    FakeGroup.may_answer.set()
    with Engine("tiny-sdxl", config=ParallelConfig(strategy="cfg"), device="cpu") as engine:
        yield engine


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "tiny-sdxx"}, "unknown model 'tiny-sdxx'"),
        (
            {"devices": 3, "config": ParallelConfig("published")},
            "strategy 'published' needs an even number of ranks, 2 at least, got 3",
        ),
        ({"devices": 0}, "devices must be at least 1, got 0"),
        ({"device": "tpu"}, "unknown device 'tpu'; choose one of auto, cuda, cpu"),
        ({"dtype": "float8"}, "unknown dtype 'float8'"),
        ({"scheduler": "flow-euler"}, "flow-matching models, this is a diffusion model"),
        ({"timeout": -1.0}, "timeout must be"),
    ],
)
def test_bad_input_is_refused_before_ranks_start(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Engine(**({"model": "tiny-sdxl", "device": "cpu"} | options))


def test_torchrun_with_another_number_of_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="2 ranks requested, torchrun started 4; use --devices 4"):
        Engine("tiny-sdxl", devices=2, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"generator": None}, "generator is not an argument .* give seed"),
        ({"return_dict": False}, "return_dict is not an argument"),
        ({"seed": -1}, "seed must be an integer from 0"),
        ({"seed": 1.5}, "seed must be an integer from 0"),
        ({"callback_on_step_end": lambda *_: {}}, "cannot travel to the ranks"),
        ({"height": 3}, "height must be a positive multiple of 8"),
    ],
)
def test_bad_requests_are_refused_before_they_are_sent(engine: Engine, arguments: dict[str, Any], message: str) -> None:
    assert engine.config.devices == 2
    with pytest.raises(ValueError, match=message):
        engine.generate("a ring", **arguments)
    assert FakeGroup.calls == []


def start_in_order(engine: Engine, threads: list[threading.Thread]) -> None:
    """Start threads that use the engine, each after the one before it stands in line, the first one in front."""
    for number, thread in enumerate(threads, start=1):
        thread.start()
        while len(engine._turns._waiting) < number or not FakeGroup.calls:
            assert thread.is_alive()
            time.sleep(0.001)


def test_threads_are_answered_in_the_order_in_which_they_asked(engine: Engine) -> None:
    FakeGroup.may_answer.clear()
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = engine.generate("a ring")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 6)]
    start_in_order(engine, threads)
    assert len(FakeGroup.calls) <= 1  # one at a time
    FakeGroup.may_answer.set()
    for thread in threads:
        thread.join()
    assert answers == {number: number for number in range(1, 6)}


def test_a_call_from_within_on_step_is_refused_instead_of_waiting_for_itself(engine: Engine) -> None:
    with pytest.raises(UsageError, match="on_step cannot call the engine"):
        engine.generate("a ring", on_step=lambda *_: engine.generate("a ring"))
    with pytest.raises(UsageError, match="on_step cannot call the engine"):
        engine.generate("a ring", on_step=lambda *_: engine.close())
    assert engine.generate("a ring")


def test_calls_that_wait_while_the_engine_is_closed_say_so(engine: Engine) -> None:
    FakeGroup.may_answer.clear()
    errors: list[Exception] = []

    def ask() -> None:
        try:
            engine.generate("a ring")
        except EngineError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask), threading.Thread(target=ask), threading.Thread(target=engine.close)]
    start_in_order(engine, threads)
    FakeGroup.may_answer.set()
    for thread in threads:
        thread.join()
    assert [str(error) for error in errors] == ["this engine was closed; make a new one"]
    with pytest.raises(EngineError, match="closed"):
        engine.generate("a ring")
