"""How the ranks of a group reach each other: one listens, those behind it in order of rank call it."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from collections.abc import Mapping
from typing import Any

from .comm import Tell

_LONGEST_CALL = 10.0
"""Seconds that a call to another rank may take; the others wait meanwhile."""

_TOKEN_BYTES, _RANK_BYTES = 16, 4


def connect_all(rank: int, tell: Tell, timeout: float) -> dict[int, socket.socket] | None:
    """TCP connections to all other ranks of a group, by rank; None, on every rank, where some cannot be reached.

    Args:
        rank: This one.
        tell: How they hear of each other's addresses.
        timeout: Seconds in which all have to be there.

    Raises:
        OSError: the deadline passed.
    """
    sockets: dict[int, socket.socket] = {}
    with _listener() as listener, contextlib.ExitStack() as closing:
        closing.callback(_close, sockets)
        told = tell((listener.getsockname(), secrets.token_bytes(_TOKEN_BYTES)))
        with contextlib.suppress(OSError):
            for other, (address, token) in enumerate(told[:rank]):
                sockets[other] = _call(address, token, rank, min(timeout / 2, _LONGEST_CALL))
        if not all(tell(len(sockets) == rank)):
            return None
        listener.settimeout(timeout)
        while len(sockets) < len(told) - 1:  # all who called wait in the backlog
            sockets |= _accepted(listener, told[rank][1])
        closing.pop_all()
    return sockets


def _close(sockets: Mapping[int, socket.socket]) -> None:
    for connection in sockets.values():
        connection.close()


def _listener() -> socket.socket:
    family, address = _own_address()
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen()
    return listener


def _own_address() -> tuple[socket.AddressFamily, str]:
    """Where the other ranks reach this one: on its way to the first rank's machine, of which torchrun tells."""
    leader = os.environ.get("MASTER_ADDR", "127.0.0.1")
    try:
        family, *_, towards = socket.getaddrinfo(leader, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(towards)  # sends nothing
            return family, probe.getsockname()[0]
    except OSError:
        return socket.AF_INET, "127.0.0.1"


def _call(address: tuple[Any, ...], token: bytes, rank: int, timeout: float) -> socket.socket:
    """A connection to a rank that listens; its token and this rank's number tell it who calls."""
    connection = socket.create_connection(address[:2], timeout)
    connection.sendall(token + rank.to_bytes(_RANK_BYTES, "big"))
    return connection


def _accepted(listener: socket.socket, token: bytes) -> dict[int, socket.socket]:
    """The next connection, by the rank that called; nothing where a stranger did."""
    connection, _ = listener.accept()
    connection.settimeout(_LONGEST_CALL)
    with contextlib.suppress(OSError):
        if secrets.compare_digest(_received(connection, _TOKEN_BYTES), token):
            return {int.from_bytes(_received(connection, _RANK_BYTES), "big"): connection}
    connection.close()
    return {}


def _received(connection: socket.socket, count: int) -> bytes:
    """The next bytes; fewer where the other end closes."""
    said = b""
    while len(said) < count and (more := connection.recv(count - len(said))):
        said += more
    return said
