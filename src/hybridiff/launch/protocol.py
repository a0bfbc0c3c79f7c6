"""What an Engine and its ranks say to each other."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ..config import ParallelConfig
from ..report.report import RunReport


@dataclass(frozen=True)
class RankSpec:
    """What a rank needs to know to start.

    Attributes:
        rank: Which rank it is.
        ranks: How many there are.
        config: How they work together.
        model: What `load_pipeline` takes; a local folder, so that no rank downloads.
        device: `cpu`, or this rank's CUDA device: `cuda:0`.
        dtype: Name of the networks' dtype, or None for the device's default.
        scheduler: Name of a scheduler, or None for the pipeline's own.
        task: `text-to-image`, `image-to-image` or `inpainting`.
        variant: Suffix of the weight files.
        rendezvous: A file by which the ranks find each other.
        startup_timeout: Deadline in seconds for finding each other.
    """

    rank: int
    ranks: int
    config: ParallelConfig
    model: str
    device: str
    dtype: str | None = None
    scheduler: str | None = None
    task: str = "text-to-image"
    variant: str | None = None
    rendezvous: str = ""
    startup_timeout: float = 600.0


@dataclass(frozen=True)
class Request:
    """One call of the pipeline: its arguments by name, and the seed of its generator."""

    arguments: dict[str, Any]
    seed: int


@dataclass(frozen=True)
class Generation:
    """What one request gave.

    Attributes:
        images: What the stock pipeline returns as images; None on ranks other than 0.
        report: What the run did.
        seed: The seed it was drawn with.
    """

    images: Any
    report: RunReport
    seed: int


@dataclass(frozen=True)
class Started:
    """A rank is ready for requests."""


@dataclass(frozen=True)
class StepDone:
    """The leader finished a denoising step: `done` of `total`."""

    done: int
    total: int


@dataclass(frozen=True)
class Warned:
    """The leader's pipeline logged a warning that the user should see."""

    text: str


@dataclass(frozen=True)
class Failed:
    """A rank could not do what it was asked.

    Attributes:
        kind: Class of the exception.
        text: Its message.
        traceback: Where it came from.
        is_bad_input: It was a ValueError: if all ranks raise it, the request is at fault and the ranks are well.
        is_echo: It only reports that another rank failed.
    """

    kind: str
    text: str
    traceback: str
    is_bad_input: bool = False
    is_echo: bool = False


@dataclass(frozen=True)
class Died:
    """A rank's process ended without a word; found by the parent."""

    how: str
    log: str


def send(connection: Connection, message: Any) -> None:
    """Send a message by value (tensors too: no shared memory that would outlive a rank).

    Raises:
        OSError: the other end is gone.
    """
    connection.send_bytes(pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL))


def receive(connection: Connection) -> Any:
    """Wait for a message.

    Raises:
        EOFError, OSError: the other end is gone.
    """
    return pickle.loads(connection.recv_bytes())
