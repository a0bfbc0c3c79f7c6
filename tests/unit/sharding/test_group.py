"""How ranks of a group talk, and how threads play them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
import torch

from hybridiff.distributed.comm import LocalComm
from hybridiff.sharding import group as group_module
from hybridiff.sharding.group import ProcessGroup, ThreadGroup, play
from hybridiff.sharding.place import current_group, in_parts
from support.shards import CountingGroup, ranks


def numbers(length: int, of: int) -> torch.Tensor:
    """Other numbers for each rank: (2, length, 3)."""
    return 100.0 * of + torch.arange(6.0 * length).reshape(2, length, 3)


@pytest.mark.parametrize("lengths", [(3, 3), (3, 2, 2), (1, 0, 4, 2)])
@pytest.mark.parametrize("dim", [1, -2])
def test_parts_of_uneven_lengths_come_one_after_the_other(lengths: tuple[int, ...], dim: int) -> None:
    parts = [numbers(length, index) for index, length in enumerate(lengths)]
    made = play(ranks(len(lengths)), lambda group: group.concatenate("here", parts[group.index], dim))
    assert all(torch.equal(one, torch.cat(parts, 1)) for one in made)


def test_lengths_are_asked_for_once_a_form_and_place() -> None:
    group = [CountingGroup(index, 3) for index in range(3)]

    def evaluate(rank: CountingGroup, form: str, length: int, *places: str) -> torch.Tensor:
        rank.begin(form)
        return torch.cat([rank.concatenate(place, numbers(length + rank.index, rank.index), 1) for place in places])

    for form, length, places, sent in (
        ("small", 1, "ab", 4),
        ("small", 1, "ab", 6),
        ("large", 4, "a", 8),
        ("large", 4, "aa", 10),
        ("small", 1, "a", 11),
        ("large", 4, "ab", 14),
        ("small", 1, "ab", 16),
    ):
        made = play(group, lambda rank: evaluate(rank, form, length, *places))  # type: ignore[arg-type]  # noqa: B023
        whole = torch.cat([numbers(length + index, index) for index in range(3)], 1)
        assert all(torch.equal(one, torch.cat([whole] * len(places))) for one in made)
        assert [rank.messages for rank in group] == [sent] * 3


def test_lengths_of_the_latest_forms_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "_MOST_FORMS", 2)
    group = [CountingGroup(index, 2) for index in range(2)]

    def evaluate(rank: CountingGroup, form: str) -> None:
        rank.begin(form)
        rank.concatenate("here", numbers(1, 0), 1)

    for forms, sent in (("ab", 4), ("a", 5), ("c", 7), ("a", 8), ("b", 10), ("c", 12)):
        for form in forms:
            play(group, lambda rank: evaluate(rank, form))  # type: ignore[arg-type]  # noqa: B023
        assert [rank.messages for rank in group] == [sent] * 2


def test_lengths_travel_by_way_of_the_host() -> None:
    group = ProcessGroup(LocalComm(3), torch.device("meta"))  # on which nothing can be read
    group.begin("a form")
    assert group.lengths("here", 5) == (5, 5, 5)


def test_bytes_are_counted() -> None:
    group = ranks(4)
    play(group, lambda rank: rank.all_gather(torch.zeros(5, 2)))
    assert [rank.received for rank in group] == [3 * 10 * 4] * 4
    play(group, lambda rank: rank.concatenate("here", torch.zeros(1 + rank.index), 0))  # all ranks tell the same
    assert [rank.sent for rank in group] == [4 * 3 * 10 * 4 + 3 * (1 + 2 + 3 + 4) * 4] * 4


def test_each_rank_hears_what_is_said_to_it() -> None:
    group = ranks(3)
    made = play(group, lambda rank: rank.all_to_all(10 * rank.index + torch.arange(3)).tolist())
    assert made == [[0, 10, 20], [1, 11, 21], [2, 12, 22]]
    assert [rank.received for rank in group] == [2 * 8] * 3


def test_first_and_last() -> None:
    assert [(rank.is_first, rank.is_last) for rank in ranks(3)] == [(True, False), (False, False), (False, True)]


@pytest.mark.parametrize("failing", [0, 2])
def test_an_error_of_one_rank_reaches_the_caller_and_no_thread_waits_on(failing: int) -> None:
    def work(rank: ThreadGroup) -> torch.Tensor:
        rank.all_gather(torch.zeros(1))
        if rank.index == failing:
            raise ZeroDivisionError("of one rank")
        return rank.all_gather(torch.zeros(1))

    group = ranks(3)
    with pytest.raises(ZeroDivisionError, match="of one rank"):
        play(group, work)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shard")]
    made = play(group, lambda rank: rank.all_gather(torch.tensor(rank.index)))  # the group is of use again
    assert all(one.tolist() == [0, 1, 2] for one in made)


def settings() -> tuple[object, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.get_num_threads(),
    )


def test_ranks_work_in_the_stream_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[object] = []

    @contextlib.contextmanager
    def enter(stream: object) -> Iterator[None]:
        entered.append(stream)
        yield

    play(ranks(2), lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the caller's")
    monkeypatch.setattr(torch.cuda, "stream", enter)
    play(ranks(2), lambda _: None)
    assert entered == ["the caller's"] * 2


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_ranks_have_the_settings_of_the_caller(grad: bool, inference: bool, autocast: bool) -> None:
    with (
        torch.set_grad_enabled(grad),
        torch.inference_mode(inference),
        torch.autocast("cpu", torch.float16 if autocast else torch.bfloat16, enabled=autocast),
    ):
        expected = settings()
        assert play(ranks(2), lambda _: settings()) == [expected] * 2
        assert settings() == expected


def test_a_group_is_that_of_its_thread_while_an_evaluation_lasts() -> None:
    def work(rank: ThreadGroup) -> bool:
        with in_parts(rank):
            rank.all_gather(torch.zeros(1))  # all of them are in the middle
            return current_group() is rank

    assert play(ranks(3), work) == [True] * 3
    assert current_group() is None
    outer, inner = ranks(2)
    with in_parts(outer):
        with pytest.raises(ZeroDivisionError), in_parts(inner):
            raise ZeroDivisionError
        assert current_group() is outer
    assert current_group() is None
