"""What fails costs its own request only: the next one is answered, by the same ranks if they all outlived it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hybridiff import Engine, ParallelConfig
from hybridiff.errors import EngineError, UsageError
from support.engines import PROMPT, TESTS, start, wait_for_end
from support.faults import (
    AT_STEP,
    Unreadable,
    dally_on_rank_1,
    raise_another_error_on_each,
    raise_on_rank_1,
    raise_value_error_on_all,
    stall_on_rank_1,
)

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module", autouse=True)
def _reachable_faults() -> Iterator[None]:
    """Let ranks import what is in tests/support, also those that take the place of others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(TESTS), prepend=os.pathsep)
        yield


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with start() as engine:
        yield engine


def image(engine: Engine) -> Any:
    return np.asarray(engine.generate(PROMPT, seed=3, num_inference_steps=2).images[0])


@pytest.fixture(scope="module")
def expected(engine: Engine) -> Any:
    return image(engine)


def fail(done: int, total: int) -> None:
    raise ValueError("the caller's own")


def interrupt(done: int, total: int) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(("on_step", "error"), [(fail, ValueError), (interrupt, KeyboardInterrupt)])
def test_an_error_of_on_step_ends_the_request(
    engine: Engine, expected: Any, on_step: Any, error: type[BaseException]
) -> None:
    before = engine.pids
    with pytest.raises(error) as raised:
        engine.generate(PROMPT, seed=1, num_inference_steps=1000, on_step=on_step)
    assert raised.traceback[-1].name == on_step.__name__  # the caller's own, not one like it
    assert np.array_equal(image(engine), expected)
    assert engine.pids == before


def test_drain_waits_until_an_ended_request_is_over_on_all_ranks(engine: Engine) -> None:
    with pytest.raises(ValueError, match="the caller's own"):
        engine.generate(PROMPT, seed=1, num_inference_steps=1000, on_step=fail)
    engine.drain()
    assert len(engine._ranks._group._replies) == len(engine.pids)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"cross_attention_kwargs": Unreadable()},
            UsageError,
            "cannot be read by the ranks .OSError: the ink has faded",
        ),
        ({"callback_on_step_end": raise_value_error_on_all}, ValueError, "^not in this light$"),
        ({"callback_on_step_end": raise_another_error_on_each}, EngineError, "the lamp of rank [01] went out"),
        (
            {"callback_on_step_end": raise_on_rank_1},
            EngineError,
            f"rank 1 failed in .*step {AT_STEP}.*RuntimeError: the lamp went out",
        ),
    ],
    ids=["unreadable", "alike", "each its own", "one rank"],
)
def test_a_failure_that_all_ranks_outlive_costs_its_request_only(
    engine: Engine, expected: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    before = engine.pids
    with pytest.raises(error, match=message) as raised:
        engine.generate(PROMPT, num_inference_steps=4, **arguments)
    assert raised.type is error
    assert error is UsageError or "Traceback" in str(raised.value.__cause__)
    assert np.array_equal(image(engine), expected)
    assert engine.pids == before


def test_a_killed_rank_is_named_and_replaced(engine: Engine, expected: Any) -> None:
    pids = engine.pids

    def kill_rank_1(done: int, total: int) -> None:
        if done == 2:
            os.kill(pids[1], signal.SIGKILL)

    started = time.monotonic()
    with pytest.raises(EngineError, match=r"rank 1 was killed by SIGKILL.*while generating after step \d+ of 500"):
        engine.generate(PROMPT, num_inference_steps=500, on_step=kill_rank_1)
    assert time.monotonic() - started < 30.0
    assert wait_for_end(pids, 1.0) == []
    assert engine.pids == []
    assert np.array_equal(image(engine), expected)
    assert len(set(engine.pids) - set(pids)) == 2


def test_a_rank_that_died_in_between_is_replaced_before_the_request(engine: Engine, expected: Any) -> None:
    pids = engine.pids
    os.kill(pids[0], signal.SIGKILL)
    assert wait_for_end(pids[:1]) == []
    assert engine.pids == pids[1:]
    assert np.array_equal(image(engine), expected)
    assert wait_for_end(pids, 1.0) == []


def test_silent_ranks_and_ranks_that_lost_touch_are_replaced() -> None:
    with start(timeout=3.0) as engine:
        pids = engine.pids
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"no sign of life from rank 1.* 3 s"):
            engine.generate(PROMPT, num_inference_steps=50, callback_on_step_end=stall_on_rank_1)
        assert time.monotonic() - started < 40.0
        assert wait_for_end(pids, 1.0) == []
        with pytest.raises(EngineError, match="within 3 s"):
            engine.generate(PROMPT, num_inference_steps=50, callback_on_step_end=dally_on_rank_1)
        assert engine.generate(PROMPT, num_inference_steps=2).images
    assert engine.pids == []
    with pytest.raises(EngineError, match="this engine was closed"):
        engine.generate(PROMPT)


def test_a_request_that_was_ended_at_its_last_step_costs_itself_only() -> None:
    """The leader hears of it behind the last message of the others, with whom it shares the picture."""

    def fail_before_the_last(done: int, total: int) -> None:
        if done == total - 1:
            fail(done, total)

    size = {"num_inference_steps": 3, "height": 384, "width": 384}
    config = ParallelConfig(strategy="cfg", shards=2)
    with Engine("tiny-sdxl", 2, config, device="cpu", timeout=10.0) as engine:
        before, expected = engine.pids, image(engine)
        for _ in range(2):
            with pytest.raises(ValueError, match="the caller's own"):
                engine.generate(PROMPT, seed=1, on_step=fail_before_the_last, **size)
            assert np.array_equal(image(engine), expected)
        assert engine.pids == before
