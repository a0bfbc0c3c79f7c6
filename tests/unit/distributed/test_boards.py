"""Memory that ranks of one machine share: who has it, and what is read where. Threads play the ranks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybridiff.distributed import boards, wires
from hybridiff.distributed.boards import PAGE, Boards
from hybridiff.distributed.wires import Wires

from .test_wires import Told, connected, in_threads

FLOATS = 2**14 // 4
"""Of a message that needs more than one packet."""


def shared(count: int) -> list[Boards | None]:
    told = Told(count)
    return in_threads(count, lambda rank: Boards.share(rank, told.by(rank)))


def text(words: str) -> torch.Tensor:
    return torch.tensor([*words.encode()], dtype=torch.uint8)


def say(board: Boards, words: str) -> None:
    board.turn()
    board.own(text(words).shape, torch.uint8).copy_(text(words))


def hear(board: Boards, other: int, letters: int) -> str:
    return bytes(board.of(other, torch.Size([letters]), torch.uint8).tolist()).decode()


def test_everyone_reads_what_each_wrote_last() -> None:
    first, second = (board for board in shared(2) if board is not None)
    for words in ("one", "two", "three"):
        say(first, words)
        say(second, words[::-1])
        assert (hear(first, 1, len(words)), hear(second, 0, len(words))) == (words[::-1], words)


def test_what_was_read_last_is_still_there_while_the_other_writes_again() -> None:
    first, second = (board for board in shared(2) if board is not None)
    for board in (first, second):
        say(board, "old")
    say(first, "new")
    assert hear(second, 0, 3) == "old"


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 3), (2, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_any_kind(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    first, second = (board for board in shared(2) if board is not None)
    said = torch.randn(shape).to(dtype)
    with torch.inference_mode():
        for board in (first, second):
            board.turn()
    for _ in range(2):  # outside of the mode in which it was first used
        first.own(said.shape, dtype).copy_(said)
        assert torch.equal(second.of(0, said.shape, dtype), said)


def test_tensors_of_messages_past_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_MOST_VIEWS", 2)
    board = next(board for board in shared(2) if board is not None)
    for length in range(5):
        board.own(torch.Size([length]), torch.float32)
        assert len(board._views) <= 2


def test_only_the_owner_writes() -> None:
    board = shared(2)[0]
    assert board is not None
    with pytest.raises(TypeError, match=r"readonly|read-only|modify"):
        board._others[1][:3] = b"new"


def test_no_descriptor_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    kept = shared(3)
    assert all(kept)
    # A mapping keeps a descriptor of its own: its own and those of two others for each of three ranks.
    assert len(os.listdir("/proc/self/fd")) - before == 9
    del kept
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("way", ["another machine", "another container", "no such memory", "not allowed"])
def test_where_one_cannot_be_read_nobody_has_boards(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def differs(*_: Any) -> Any:
        calls.append(len(calls))
        return None if way == "no such memory" else (str(len(calls)), "same")

    def refused(process: int, memory: int, is_own: bool) -> Any:
        if is_own:
            return OPENED(process, memory, is_own)
        raise PermissionError

    if way == "not allowed":
        monkeypatch.setattr(boards, "_opened", refused)
    else:
        monkeypatch.setattr(boards, "_new_memory" if way == "no such memory" else "_machine", differs)
    assert shared(2) == [None, None]


OPENED = boards._opened


def test_a_machine_without_such_files_has_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_: (_ for _ in ()).throw(FileNotFoundError))
    assert boards._machine() is None
    assert shared(2) == [None, None]


def test_a_system_without_memory_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert shared(2) == [None, None]
    heard = talk([FLOATS])
    assert heard == talked([FLOATS])


def talk(lengths: list[int], count: int = 3, ends: Sequence[Wires | None] = ()) -> list[list[list[float]]]:
    """What ranks hear in messages of some lengths, gathered and exchanged in turns: the last number of each piece."""
    ends = ends or connected(count)

    def work(rank: int) -> list[list[float]]:
        heard = []
        for turn, length in enumerate(lengths):
            out = torch.empty(count, length)
            end = ends[rank]
            assert end is not None
            if turn % 2:
                said = torch.arange(count).repeat_interleave(length) * 100.0 + 10.0 * turn + rank
                end.all_to_all(said, out.view(-1))
            else:
                end.all_gather(torch.full((length,), 10.0 * turn + rank), out)
            assert torch.equal(out, out[:, :1].expand_as(out))
            heard.append(out[:, -1].tolist())
        return heard

    heard = in_threads(count, work)
    for end in ends:
        assert end is not None
        end.close()
    return heard


def talked(lengths: list[int], count: int = 3) -> list[list[list[float]]]:
    return [
        [[(turn % 2) * 100.0 * rank + 10.0 * turn + by for by in range(count)] for turn in range(len(lengths))]
        for rank in range(count)
    ]


@given(st.lists(st.sampled_from([1, FLOATS - 1, FLOATS, 3 * FLOATS]), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)
def test_messages_of_any_length_in_any_order(lengths: list[int]) -> None:
    assert talk(lengths) == talked(lengths)


@pytest.mark.parametrize(("length", "is_on_board"), [(1, True), (2 * FLOATS, True), (2 * FLOATS + 1, False)])
def test_what_finds_no_room_goes_by_the_connection(
    length: int, is_on_board: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "PAGE", 8 * FLOATS)
    turns: list[Boards] = []

    def turn(board: Boards) -> None:
        turns.append(board)
        TURN(board)

    ends = connected(2)
    monkeypatch.setattr(Boards, "turn", turn)
    assert talk([length], 2, ends) == talked([length], 2)
    assert len(turns) == (2 if is_on_board else 0)


TURN = Boards.turn


def test_a_page_has_room_for_its_longest_message() -> None:
    first, second = connected(2)
    said = torch.arange(PAGE // 4, dtype=torch.int32)

    def work(end: Wires | None) -> torch.Tensor:
        out = torch.empty(2, len(said), dtype=torch.int32)
        assert end is not None
        for _ in range(2):  # both pages
            end.all_gather(said, out)
        return out

    for heard in in_threads(2, lambda rank: work((first, second)[rank])):
        assert torch.equal(heard, said.expand(2, -1))
