"""What a step is made of on the wire."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from .reading import Reading


class Messages(ABC):
    """The messages of a step, and how a rank that leaves takes part in them."""

    @abstractmethod
    def begin(self) -> None:
        """A step begins that is made of these messages."""

    @abstractmethod
    def take_part(self) -> bool:
        """Send what is left of the step's messages, with nothing in them but the status; whether that was heard."""

    @abstractmethod
    def read_status(self, scalars: torch.Tensor | None = None) -> Reading:
        """Begin to read the step's status slots, and scalars (1-D) with them."""
