from __future__ import annotations

import pytest

from hybridiff.errors import EngineError, UsageError
from hybridiff.launch.errors import RemoteTraceback, verdict
from hybridiff.launch.protocol import Died, Failed, Started

ECHO = "rank 0 in warm-up, step 3, waiting to gather the predictions: no answer within 4 s: [/src/pair.cc:1] Bye!"


def bad_input(text: str) -> Failed:
    return Failed("ValueError", text, "trace", is_bad_input=True)


def echo(text: str = ECHO) -> Failed:
    return Failed("RankError", text, "trace", is_echo=True)


def test_ranks_that_did_as_asked_give_no_error() -> None:
    assert verdict({0: Started(), 1: Started()}, 2, 10.0, "starting") is None


def test_a_refusal_of_all_ranks_is_one_value_error() -> None:
    error = verdict({1: bad_input("no prompt"), 0: bad_input("no prompt")}, 2, 10.0, "generating")
    assert type(error) is ValueError
    assert str(error) == "no prompt"
    assert isinstance(error.__cause__, RemoteTraceback)


def test_a_mistake_of_the_user_is_one_sentence() -> None:
    mistake = Failed("UsageError", "ranks disagree on prompt", "trace", is_bad_input=True)
    error = verdict({0: mistake, 1: mistake}, 2, 10.0, "generating")
    assert type(error) is UsageError
    assert (str(error), error.__cause__) == ("ranks disagree on prompt", None)


def test_a_mistake_that_a_rank_finds_before_others_have_loaded_is_one() -> None:
    mistake = Failed("UsageError", "no such LoRA", "trace", is_bad_input=True)
    assert type(verdict({1: mistake}, 2, 10.0, "starting", may_be_slow=True)) is UsageError
    for replies in ({1: mistake, 0: Started()}, {1: mistake, 0: bad_input("odd")}, {1: Failed("OSError", "disk", "")}):
        assert type(verdict(replies, 2, 10.0, "starting", may_be_slow=True)) is EngineError
    assert str(verdict({}, 2, 10.0, "starting", may_be_slow=True)).startswith("no sign of life from ranks 0, 1")


@pytest.mark.parametrize(
    ("replies", "text"),
    [
        ({0: Started()}, "no sign of life from rank 1 for 10 s while generating"),
        ({}, "no sign of life from ranks 0, 1 for 10 s while generating"),
        ({1: bad_input("bad"), 0: Started()}, "rank 1 failed while generating: ValueError: bad"),
        ({0: bad_input("bad"), 1: bad_input("odd")}, "rank 0 failed while generating: ValueError: bad"),
        ({0: bad_input("bad")}, "rank 0 failed while generating: ValueError: bad"),
        (
            {1: Failed("OSError", "disk", "trace"), 0: bad_input("bad")},
            "rank 0 failed while generating: ValueError: bad",
        ),
        ({0: echo("rank 1 failed in connect, step 7: KeyError: 3"), 1: Failed("KeyError", "3", "trace")}, None),
        ({1: Died("was killed by SIGKILL", "")}, "rank 1 was killed by SIGKILL while generating"),
        (
            {0: echo(), 1: Died("was killed by SIGKILL", "log")},
            "rank 1 was killed by SIGKILL while generating; "
            "rank 0 in warm-up, step 3, waiting to gather the predictions",
        ),
        (
            {0: echo()},
            "no sign of life from rank 1; "
            "rank 0 in warm-up, step 3, waiting to gather the predictions: no answer within 4 s",
        ),
    ],
)
def test_the_best_story_wins(replies: dict[int, object], text: str | None) -> None:
    error = verdict(replies, 2, 10.0, "generating")
    assert isinstance(error, EngineError)
    assert str(error) == (text or "rank 1 failed in connect, step 7: KeyError: 3")


def test_causes_come_along() -> None:
    error = verdict({0: echo(), 1: Died("was killed", "out of memory")}, 2, 10.0, "generating")
    assert error is not None
    assert "the last lines of rank 1:\nout of memory" in str(error.__cause__)
