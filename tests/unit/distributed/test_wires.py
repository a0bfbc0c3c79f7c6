"""Connections of a group: what is said and heard over them, and what ends a wait. Threads play the ranks."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from hybridiff.distributed import connecting, wires
from hybridiff.distributed.wires import Wires

TIMEOUT = 20.0


class Told:
    """How threads tell each other things: everyone hears all, in order of rank."""

    def __init__(self, count: int) -> None:
        self.things: list[Any] = [None] * count
        self.barrier = threading.Barrier(count, timeout=TIMEOUT)

    def by(self, rank: int) -> Callable[[Any], list[Any]]:
        def tell(thing: Any) -> list[Any]:
            self.things[rank] = thing
            self.barrier.wait()
            heard = list(self.things)
            self.barrier.wait()
            return heard

        return tell


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def connected(count: int, timeout: float = TIMEOUT) -> list[Wires | None]:
    told = Told(count)
    return in_threads(count, lambda rank: Wires.connect(rank, told.by(rank), timeout))


@pytest.fixture
def pair() -> Iterator[list[Wires]]:
    ends = [end for end in connected(2, 0.5) if end is not None]
    yield ends
    for end in ends:
        end.close()


def gathered(end: Wires, mine: torch.Tensor, count: int) -> torch.Tensor:
    out = mine.new_empty(count, mine.numel())
    end.all_gather(mine, out)
    return out


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_everyone_hears_what_is_said_to_it(count: int) -> None:
    ends = connected(count)
    said = torch.randn(count, count, 4)  # by, to

    def exchanged(rank: int) -> torch.Tensor:
        out, end = torch.empty(count * 4), ends[rank]
        assert end is not None
        end.all_to_all(said[rank].view(-1), out)
        return out.view(count, 4)

    for rank, heard in enumerate(in_threads(count, exchanged)):
        assert torch.equal(heard, said[:, rank])
    for end in ends:
        assert end is not None
        end.close()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_everyone_hears_all_in_order_of_rank(count: int, dtype: torch.dtype) -> None:
    ends = connected(count)
    said = [torch.arange(7 * rank, 7 * rank + 7).to(dtype) for rank in range(count)]
    for heard in in_threads(count, lambda rank: gathered(ends[rank], said[rank], count)):  # type: ignore[arg-type]
        assert torch.equal(heard, torch.stack(said))
    for end in ends:
        assert end is not None
        end.close()


@pytest.mark.parametrize("is_on_board", [True, False])
def test_numbers_that_require_gradients_are_sent_without_them(is_on_board: bool, pair: list[Wires]) -> None:
    said = torch.randn(4, requires_grad=True) * 2

    def work(rank: int) -> list[torch.Tensor]:
        if not is_on_board:
            pair[rank]._boards = None
        gathered_, exchanged = torch.zeros(2, 4), torch.zeros(4)
        pair[rank].all_gather(said, gathered_)
        pair[rank].all_to_all(said, exchanged)
        return [gathered_, exchanged]

    for rank, (heard, exchanged) in enumerate(in_threads(2, work)):
        assert torch.equal(heard, said.detach().expand(2, -1))
        assert torch.equal(exchanged, said.detach().chunk(2)[rank].repeat(2))
        assert not heard.requires_grad


@pytest.mark.parametrize("is_on_board", [True, False])
def test_ranks_compute_between_the_ends_of_a_message(is_on_board: bool, pair: list[Wires]) -> None:
    said = [torch.randn(2, 1 + rank, 3).mT for rank in range(2)]  # of different lengths, and not contiguous

    def work(rank: int) -> list[torch.Tensor]:
        if not is_on_board:
            pair[rank]._boards = None
        for _ in range(3):
            hear = pair[rank].start_gather(said[rank], [one.shape for one in said])
            time.sleep(0.01 * rank)
            heard = hear()
        return heard

    for heard in in_threads(2, work):
        assert all(map(torch.equal, heard, said))


def test_a_message_that_nobody_heard_is_not_taken_for_the_next_one(pair: list[Wires]) -> None:
    def begin(rank: int) -> None:
        pair[rank].start_gather(torch.ones(2), [torch.Size([2])] * 2)

    in_threads(2, begin)
    with pytest.raises(OSError, match="broken off"):
        begin(0)
    with pytest.raises(OSError, match=r"closed|reset|broken off"):
        gathered(pair[1], torch.zeros(2), 2)


@pytest.mark.parametrize("elements", [0, 1, 2**22])
def test_messages_of_any_length_one_after_the_other(pair: list[Wires], elements: int) -> None:
    def work(rank: int) -> list[float]:
        return [gathered(pair[rank], torch.full((elements,), rank + turn), 2).sum().item() for turn in range(3)]

    assert in_threads(2, work) == [[elements * (1 + 2 * turn) for turn in range(3)]] * 2


def test_a_rank_that_leaves_ends_the_wait_of_the_others(pair: list[Wires]) -> None:
    pair[1].close()
    begun = time.monotonic()
    with pytest.raises(OSError, match="closed"):
        gathered(pair[0], torch.zeros(3), 2)
    assert time.monotonic() - begun < 0.4


@pytest.mark.parametrize("elements", [3, 2**23])
def test_a_silent_rank_is_waited_for_until_the_deadline(pair: list[Wires], elements: int) -> None:
    with pytest.raises(TimeoutError, match=r"waited for 0\.5 s"):
        gathered(pair[0], torch.zeros(elements), 2)


def test_strangers_are_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    call = connecting._call

    def after_strangers(address: tuple[Any, ...], token: bytes, *rest: Any) -> socket.socket:
        for guess in (b"", bytes(len(token)), b"G"):
            call(address, guess, 1, TIMEOUT).close()
        return call(address, token, *rest)

    monkeypatch.setattr(connecting, "_call", after_strangers)
    ends = connected(2)
    heard = in_threads(2, lambda rank: gathered(ends[rank], torch.tensor([rank]), 2).tolist())  # type: ignore[arg-type]
    assert heard == [[[0], [1]]] * 2


def test_where_one_cannot_be_reached_nobody_has_wires(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(address: Any, token: bytes, rank: int, timeout: float) -> socket.socket:
        if rank == 2:
            raise ConnectionRefusedError
        return CALL(address, token, rank, timeout)

    monkeypatch.setattr(connecting, "_call", refused)
    assert connected(3) == [None] * 3


CALL = connecting._call


@pytest.mark.parametrize("leader", [None, "127.0.0.1", "localhost", "no such machine"])
def test_ranks_listen_where_the_first_one_hears_them(leader: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    if leader is not None:
        monkeypatch.setenv("MASTER_ADDR", leader)
    assert connecting._own_address()[1] in ("127.0.0.1", "::1")


def test_messages_of_different_lengths_are_refused(pair: list[Wires]) -> None:
    def gather(rank: int) -> str:
        with pytest.raises(OSError, match=r".") as caught:
            gathered(pair[rank], torch.zeros(3 + rank), 2)
        return str(caught.value)

    assert "another rank said 16 bytes where 12 were to be heard" in in_threads(2, gather)


def test_an_interrupt_is_heard_once_the_message_is_whole(pair: list[Wires]) -> None:
    answers = []

    def other() -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)  # the main thread waits for this one's message
        time.sleep(0.1)
        answers.append(gathered(pair[1], torch.ones(2), 2))

    thread = threading.Thread(target=other)
    thread.start()
    out = torch.zeros(2, 2)
    with pytest.raises(KeyboardInterrupt):
        pair[0].all_gather(torch.zeros(2), out)
    thread.join()
    assert out.tolist() == answers[0].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert all(map(torch.equal, *in_threads(2, lambda rank: gathered(pair[rank], torch.full((1,), 5.0), 2))))


def test_an_interrupt_waits_for_the_end_of_several_messages(pair: list[Wires]) -> None:
    heard: dict[int, list[list[float]]] = {0: [], 1: []}

    def gather(rank: int) -> None:
        for _ in range(3):
            heard[rank] += gathered(pair[rank], torch.tensor([float(rank)]), 2).mT.tolist()

    def pressed() -> None:
        with wires.uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            gather(0)

    handler = signal.getsignal(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(gather, 1)
        with pytest.raises(KeyboardInterrupt):
            pressed()
    assert heard == {0: [[0.0, 1.0]] * 3, 1: [[0.0, 1.0]] * 3}
    assert signal.getsignal(signal.SIGINT) is handler


def test_what_breaks_a_message_off_closes_the_connection(pair: list[Wires], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "_ready", lambda *_: (_ for _ in ()).throw(SystemExit))
    with pytest.raises(SystemExit):
        gathered(pair[0], torch.zeros(2), 2)
    monkeypatch.undo()
    assert gathered(pair[1], torch.ones(2), 2).tolist() == [[0.0, 0.0], [1.0, 1.0]], "what was said is heard"
    with pytest.raises(OSError, match=r"closed|reset|Broken"):
        gathered(pair[1], torch.zeros(2), 2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_everyone_hears_the_objects_of_all_in_order_of_rank(count: int) -> None:
    ends = connected(count)
    things: list[Any] = [None, {"two": [torch.arange(3)]}, "three" * 20_000]
    for heard in in_threads(count, lambda rank: ends[rank].all_gather_object(things[rank])):  # type: ignore[union-attr]
        assert str(heard) == str(things[:count])
    for end in ends:
        assert end is not None
        end.close()


def test_an_interrupt_is_heard_once_an_object_is_whole(pair: list[Wires]) -> None:
    heard = []

    def other() -> None:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        heard.append(pair[1].all_gather_object("b"))

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pair[0].all_gather_object("a")
    thread.join()
    assert heard == [["a", "b"]]
    assert in_threads(2, lambda rank: pair[rank].all_gather_object(rank)) == [[0, 1]] * 2
