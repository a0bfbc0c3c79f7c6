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
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from .boards import PAGE, Boards
from .comm import Heard, Tell
from .connecting import connect_all

T = TypeVar("T")

_POLLED = 1e-4
"""Seconds for which a rank asks again and again before it sleeps: a core that sleeps takes as long to wake."""

_LENGTH_BYTES = 8
_SHORT = 2**14
"""Bytes of a message that goes out together with its length."""


class Wires:
    """A TCP connection to each other rank of a group, over which messages within one machine are announced only.

    Args:
        sockets: By rank of the other.
        rank: This one.
        timeout: Deadline of every message in seconds.
    """

    def __init__(self, sockets: Mapping[int, socket.socket], rank: int, timeout: float) -> None:
        self._wires = {other: _Wire(connection) for other, connection in sockets.items()}
        self._rank, self._timeout = rank, timeout
        self._boards: Boards | None = None  # where ranks of one machine put messages

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
        with uninterrupted():
            heard = self.start_gather(mine, [mine.shape] * len(out))()
            torch.stack(heard, out=out)

    def start_gather(self, mine: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        """Begin to hear tensors of all ranks, see `Comm.start_gather`.

        Raises:
            OSError: another rank left, or the deadline passed; what this returns raises it too.
        """
        mine = mine.detach()
        if self._boards is not None and max(shape.numel() for shape in shapes) * mine.element_size() <= PAGE:
            return self._start_on(self._boards, mine, shapes)
        heard = [mine if rank == self._rank else mine.new_empty(shape) for rank, shape in enumerate(shapes)]
        return self._start_over([mine.reshape(-1)] * len(shapes), heard)

    def all_gather_object(self, thing: T) -> list[T]:
        """One small picklable object from every rank, in order of rank.

        Raises:
            OSError: another rank left, or the deadline passed.
        """
        mine = torch.frombuffer(bytearray(pickle.dumps(thing)), dtype=torch.uint8)
        lengths = torch.empty(len(self._wires) + 1, 1, dtype=torch.int64)
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
        ranks = len(self._wires) + 1
        pieces, into = mine.detach().view(ranks, -1), out.view(ranks, -1)
        with uninterrupted():
            if self._boards is not None and mine.nbytes <= PAGE:
                said = self._start_on(self._boards, pieces, [pieces.shape] * ranks)()
                torch.stack([one[self._rank] for one in said], out=into)
            else:
                into[self._rank] = pieces[self._rank]
                self._start_over(pieces.unbind(), [*into.unbind()])()

    def close(self) -> None:
        """Leave; whoever waits for this rank hears of it."""
        for wire in self._wires.values():
            wire.connection.close()

    def _start_on(self, boards: Boards, mine: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        """Write what ranks of one machine read where it is, and begin to tell them that it is there."""
        with self._whole():
            boards.turn()
            boards.own(mine.shape, mine.dtype).copy_(mine)
            for other, wire in self._wires.items():
                wire.announce(mine.nbytes, shapes[other].numel() * mine.element_size())

        def hear() -> list[torch.Tensor]:
            self._finish()
            return [
                mine if rank == self._rank else boards.of(rank, shape, mine.dtype) for rank, shape in enumerate(shapes)
            ]

        return hear

    def _start_over(self, said: Sequence[torch.Tensor], heard: list[torch.Tensor]) -> Heard:
        """Begin to send each rank what is said to it, and to receive what each says; all of them are contiguous."""
        with self._whole():
            for other, wire in self._wires.items():
                wire.begin(_bytes(said[other]), _bytes(heard[other]))

        def hear() -> list[torch.Tensor]:
            self._finish()
            return heard

        return hear

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """Half of a message would be taken for the beginning of the next one."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _finish(self) -> None:
        begun, wires = time.monotonic(), [*self._wires.values()]
        with self._whole():
            while wires := [wire for wire in wires if not wire.advance()]:
                waited = time.monotonic() - begun
                if waited > _POLLED and not _ready(wires, self._timeout - waited):
                    raise TimeoutError(f"waited for {self._timeout:g} s")


class _Wire:
    """A connection, and what of a message is still to be sent and received: its length, and what is not on a board.

    Args:
        connection: To another rank.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connection = connection
        self._length, self._expected = bytearray(_LENGTH_BYTES), 0
        self._outgoing: list[memoryview] = []
        self._incoming: list[memoryview] = []

    def begin(self, said: memoryview, heard: memoryview) -> None:
        """A message begins, and is to be heard: send what can be sent at once."""
        length = len(said).to_bytes(_LENGTH_BYTES, "big")
        is_short = len(said) < _SHORT
        self._begin([memoryview(length + said)] if is_short else [memoryview(length), said], len(heard), [heard])

    def announce(self, said: int, heard: int) -> None:
        """The same where both are on boards, of so many bytes."""
        self._begin([memoryview(said.to_bytes(_LENGTH_BYTES, "big"))], heard, [])

    def _begin(self, outgoing: list[memoryview], expected: int, heard: list[memoryview]) -> None:
        if self._outgoing or self._incoming:
            raise ConnectionError("a message was broken off")
        self._outgoing, self._expected, self._incoming = outgoing, expected, [memoryview(self._length), *heard]
        self._send()

    @property
    def awaited(self) -> int:
        """What has to happen before more can be moved, as events of a selector."""
        return (selectors.EVENT_WRITE if self._outgoing else 0) | (selectors.EVENT_READ if self._incoming else 0)

    def advance(self) -> bool:
        """Move what can be moved at once; whether nothing is left."""
        self._send()
        while self._incoming and _is_moved(self._incoming, self.connection.recv_into):
            said = int.from_bytes(self._length, "big")
            if said != self._expected:
                raise ConnectionError(f"another rank said {said} bytes where {self._expected} were to be heard")
        return not self._outgoing and not self._incoming

    def _send(self) -> None:
        while self._outgoing and _is_moved(self._outgoing, self.connection.send):
            pass


def _is_moved(parts: list[memoryview], move: Callable[[memoryview], int]) -> bool:
    """Move what can be moved at once of the first part; whether that was all of it, which is left out then."""
    try:
        while parts[0]:
            moved = move(parts[0])
            if not moved:
                raise ConnectionError("the connection was closed by its other end")
            parts[0] = parts[0][moved:]
    except BlockingIOError:
        return False
    del parts[0]
    return True


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


def _ready(wires: list[_Wire], timeout: float) -> bool:
    """Sleep until one of them can go on; False where none could in time."""
    with selectors.DefaultSelector() as selector:
        for wire in wires:
            selector.register(wire.connection, wire.awaited)
        return timeout > 0 and bool(selector.select(timeout))


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    memory: Any = tensor.detach().view(-1).view(torch.uint8).numpy()
    return memoryview(memory)
