"""Outputs of networks, tensors in whatever they are nested in, as one message."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch

_ALIGNMENT = 64
"""Bytes at whose multiples tensors begin in a message."""


@dataclass(frozen=True)
class _Piece:
    """Where a tensor stands in a message.

    Attributes:
        start: Its first byte.
        shape: Its shape.
        dtype: Its dtype.
        on_host: It is on the CPU wherever networks run.
    """

    start: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    on_host: bool

    @property
    def end(self) -> int:
        """The byte behind its last one."""
        return self.start + torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class _Entries:
    """An output of transformers: its class, and what it holds by name."""

    kind: type
    entries: dict[str, Any]


class Outline:
    """How an output is nested, with pieces of a message for its tensors; small enough to travel as an object.

    Objects of other kinds, such as caches of keys and values, are left out.

    Attributes:
        size: Bytes of the message.
    """

    def __init__(self, output: Any) -> None:
        self.size = 0
        pieces: dict[int, tuple[torch.Tensor, _Piece]] = {}
        self._nested = self._of(output, pieces)
        self._tensors = [*pieces.values()]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_tensors": []}

    def pack(self, device: torch.device) -> torch.Tensor:
        """The message, 1-D uint8, where the output is at hand."""
        message = torch.zeros(self.size, dtype=torch.uint8, device=device)
        for tensor, piece in self._tensors:
            message[piece.start : piece.end].copy_(tensor.detach().contiguous().flatten().view(torch.uint8))
        return message

    def unpack(self, message: torch.Tensor) -> Any:
        """The output; a tensor that stands in it several times is one there too."""
        return _unpack(self._nested, message, {})

    def _of(self, output: Any, pieces: dict[int, tuple[torch.Tensor, _Piece]]) -> Any:
        if isinstance(output, torch.Tensor):
            if id(output) not in pieces:
                piece = _Piece(self.size, tuple(output.shape), output.dtype, output.device.type == "cpu")
                pieces[id(output)] = output, piece
                self.size = (piece.end // _ALIGNMENT + 1) * _ALIGNMENT  # an empty one too has a place of its own
            return pieces[id(output)][1]
        if isinstance(output, (tuple, list)):
            return type(output)(self._of(one, pieces) for one in output)
        if isinstance(output, OrderedDict):
            entries = {name: self._of(one, pieces) for name, one in output.items()}
            return _Entries(type(output), {name: one for name, one in entries.items() if one is not None})
        return output if isinstance(output, (bool, int, float, str)) else None


def _unpack(nested: Any, message: torch.Tensor, cut: dict[int, torch.Tensor]) -> Any:
    if isinstance(nested, _Piece):
        if nested.start not in cut:
            own = message[nested.start : nested.end].clone()
            cut[nested.start] = (own.cpu() if nested.on_host else own).view(nested.dtype).view(nested.shape)
        return cut[nested.start]
    if isinstance(nested, (tuple, list)):
        return type(nested)(_unpack(one, message, cut) for one in nested)
    if isinstance(nested, _Entries):
        return nested.kind(**{name: _unpack(one, message, cut) for name, one in nested.entries.items()})
    return nested
