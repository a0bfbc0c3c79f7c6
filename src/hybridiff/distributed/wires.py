"""Connections of a group of CPU ranks for all-gathers and the like, each end read by the thread that waits.

Gloo hands each message from thread to thread, on the core that computes: a millisecond and more where it is busy. Here
the thread that has to wait reads by itself, so that a message takes what the network takes.
"""

from __future__ import annotations

import contextlib
import pickle
import selectors
import signal
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import nn

from .boards import PAGE, Boards
from .comm import Tell
from .connecting import connect_all

T = TypeVar("T")

_POLLED = 1e-4
"""Seconds for which a rank asks again and again before it sleeps: a core that sleeps takes as long to wake."""

_LENGTH_BYTES = 8
_SHORT = 2**14
"""Bytes of a message that goes out together with its length; longer ones are put on boards where there are any."""

_ON_BOARD = memoryview(b"")


class Wires:
    """A TCP connection to each other rank of a group, over which long messages within one machine are announced only.

    Args:
        sockets: By rank of the other.
        rank: This one.
        timeout: Deadline of every message in seconds.
    """

    def __init__(self, sockets: Mapping[int, socket.socket], rank: int, timeout: float) -> None:
        self._sockets, self._rank, self._timeout = dict(sockets), rank, timeout
        self._boards: Boards | None = None  # where ranks of one machine put long messages
        for connection in sockets.values():
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    def connect(cls, rank: int, tell: Tell, timeout: float) -> Wires | None:
        """Connections between all ranks of a group, which call this together; None where some cannot be reached.

        Args:
            rank: This one.
            tell: How they hear of each other's addresses.
            timeout: Deadline of every message in seconds.
        """
        sockets = connect_all(rank, tell, timeout)
        if sockets is None:
            return None
        wires = cls(sockets, rank, timeout)
        wires._boards = Boards.share(rank, wires.all_gather_object)
        return wires

    def all_gather(self, mine: torch.Tensor, out: torch.Tensor) -> None:
        """What all ranks say.

        Args:
            mine: 1-D, of n elements, on the CPU.
            out: Receives all in order of rank, (ranks, n).

        Raises:
            OSError: another rank left, or the deadline passed.
        """
        said, heard = _bytes(mine), _pieces(out)
        heard[self._rank][:] = said
        self._exchange([said], heard)

    def all_gather_object(self, thing: T) -> list[T]:
        """One small picklable object from every rank, in order of rank.

        Raises:
            OSError: another rank left, or the deadline passed.
        """
        mine = torch.frombuffer(bytearray(pickle.dumps(thing)), dtype=torch.uint8)
        lengths = torch.empty(len(self._sockets) + 1, 1, dtype=torch.int64)
        with uninterrupted():
            self.all_gather(torch.tensor([len(mine)]), lengths)
            longest = int(lengths.max())
            heard = torch.empty(len(lengths), longest, dtype=torch.uint8)
            self.all_gather(nn.functional.pad(mine, (0, longest - len(mine))), heard)
        return [pickle.loads(one.numpy()[:length]) for one, length in zip(heard, lengths.flatten(), strict=True)]

    def all_to_all(self, mine: torch.Tensor, out: torch.Tensor) -> None:
        """What all ranks say to this one.

        Args:
            mine: 1-D, on the CPU: a piece for each rank, all of one size, one after the other.
            out: Receives as many pieces, in order of the ranks they are from.

        Raises:
            OSError: another rank left, or the deadline passed.
        """
        ranks = len(self._sockets) + 1
        pieces, heard = _pieces(mine.view(ranks, -1)), _pieces(out.view(ranks, -1))
        heard[self._rank][:] = pieces[self._rank]
        self._exchange(pieces, heard)

    def close(self) -> None:
        """Leave; whoever waits for this rank hears of it."""
        for connection in self._sockets.values():
            connection.close()

    def _exchange(self, pieces: Sequence[memoryview], heard: Sequence[memoryview]) -> None:
        """Send each other rank its piece, or all the only one, and receive of each."""
        into = {other: heard[other] for other in self._sockets}
        boards = self._boards if _SHORT <= len(pieces[0]) <= PAGE // len(pieces) else None
        with uninterrupted():
            try:
                if boards is not None:
                    boards.write(pieces)
                self._finish(self._streams(pieces, into, boards is not None))
                if boards is not None:
                    for other, memory in into.items():
                        boards.read(other, self._rank if len(pieces) > 1 else 0, memory)
            except BaseException:
                self.close()  # half of a message would be taken for the beginning of the next one
                raise

    def _streams(
        self, pieces: Sequence[memoryview], into: Mapping[int, memoryview], is_on_board: bool
    ) -> list[_Stream]:
        outgoing: list[_Stream] = [
            _Outgoing(connection, pieces[other if len(pieces) > 1 else 0], is_on_board)
            for other, connection in self._sockets.items()
        ]
        return outgoing + [
            _Incoming(connection, into[other], is_on_board) for other, connection in self._sockets.items()
        ]

    def _finish(self, streams: list[_Stream]) -> None:
        begun = time.monotonic()
        while streams := [stream for stream in streams if not stream.advance()]:
            waited = time.monotonic() - begun
            if waited > _POLLED and not _ready(streams, self._timeout - waited):
                raise TimeoutError(f"waited for {self._timeout:g} s")


class _Stream(ABC):
    """What is still to be sent to a rank, or received of it: a message's length, and what is not on a board."""

    event: ClassVar[int]

    def __init__(self, connection: socket.socket, parts: list[memoryview]) -> None:
        self.connection, self._parts = connection, parts

    def advance(self) -> bool:
        """Move what can be moved at once; whether nothing is left."""
        try:
            while self._parts:
                while self._parts[0]:
                    moved = self._move(self._parts[0])
                    if not moved:
                        raise ConnectionError("the connection was closed by its other end")
                    self._parts[0] = self._parts[0][moved:]
                del self._parts[0]
                self._check()
        except BlockingIOError:
            return False
        return True

    @abstractmethod
    def _move(self, part: memoryview) -> int:
        """Move some bytes; how many."""

    def _check(self) -> None:  # noqa: B027 - what is sent needs none
        """A part is whole."""


class _Outgoing(_Stream):
    event = selectors.EVENT_WRITE

    def __init__(self, connection: socket.socket, said: memoryview, is_on_board: bool) -> None:
        length = len(said).to_bytes(_LENGTH_BYTES, "big")
        rest = _ON_BOARD if is_on_board else said
        is_short = len(rest) < _SHORT
        super().__init__(connection, [memoryview(length + bytes(rest))] if is_short else [memoryview(length), rest])

    def _move(self, part: memoryview) -> int:
        return self.connection.send(part)


class _Incoming(_Stream):
    event = selectors.EVENT_READ

    def __init__(self, connection: socket.socket, heard: memoryview, is_on_board: bool) -> None:
        self._length, self._expected = bytearray(_LENGTH_BYTES), len(heard)
        super().__init__(connection, [memoryview(self._length), _ON_BOARD if is_on_board else heard])

    def _move(self, part: memoryview) -> int:
        return self.connection.recv_into(part)

    def _check(self) -> None:
        said = int.from_bytes(self._length, "big")
        if said != self._expected:
            raise ConnectionError(f"another rank said {said} bytes where {self._expected} were to be heard")


class _Pressed(list[int]):
    """Takes note of Ctrl-C."""

    def __call__(self, number: int, _: object) -> None:
        self.append(number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C is heard once this is over: a message is whole then, as where C code sends it, or all of several are."""
    handler = signal.getsignal(signal.SIGINT)
    if handler is None or isinstance(handler, _Pressed) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = _Pressed()
    signal.signal(signal.SIGINT, pressed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pressed:
            signal.raise_signal(signal.SIGINT)


def _ready(streams: list[_Stream], timeout: float) -> bool:
    """Sleep until one of them can go on; False where none could in time."""
    events: dict[socket.socket, int] = {}
    for stream in streams:
        events[stream.connection] = events.get(stream.connection, 0) | stream.event
    with selectors.DefaultSelector() as selector:
        for connection, event in events.items():
            selector.register(connection, event)
        return timeout > 0 and bool(selector.select(timeout))


def _pieces(tensor: torch.Tensor) -> list[memoryview]:
    """The memory of each row of a tensor, whose rows lie one after the other."""
    memory, size = _bytes(tensor.view(-1)), tensor[0].nbytes
    return [memory[number * size : (number + 1) * size] for number in range(len(tensor))]


def _bytes(tensor: torch.Tensor) -> memoryview:
    """A 1-D tensor's memory."""
    memory: Any = tensor.detach().view(torch.uint8).numpy()
    return memoryview(memory)
