"""What an Engine and its ranks say to each other."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from typing import Any, ClassVar

from ..config import ParallelConfig
from ..distributed.placement import Placement
from ..models.folder import ModelFolder
from ..models.loras import Lora
from ..report.report import RunReport

OnStep = Callable[[int, int], None]
"""Is told of every denoising step: (done, total)."""


@dataclass(frozen=True)
class RankSpec:
    """What a rank needs to know to start.

    Attributes:
        placement: Which rank it is, of how many, and on which device.
        config: How they work together.
        model: What is on this disk, so that no rank downloads.
        loading: Further arguments of `load_pipeline`.
        startup_timeout: Deadline in seconds for the ranks to be ready.
        rendezvous: A file by which they find each other; None under torchrun.
    """

    placement: Placement
    config: ParallelConfig
    model: ModelFolder
    loading: dict[str, Any] = field(default_factory=dict)
    startup_timeout: float = 600.0
    rendezvous: str | None = None

    def of_rank(self, rank: int, rendezvous: str) -> RankSpec:
        """The same for another rank on this machine."""
        return replace(self, placement=self.placement.of_rank(rank), rendezvous=rendezvous)


@dataclass(frozen=True)
class Call:
    """One call of the pipeline: its arguments by name, and the seed of its generator, unless that is to be drawn."""

    arguments: dict[str, Any]
    seed: int | None

    def seeded(self, seed: int) -> Call:
        """The same call, with this seed where it has none of its own."""
        return replace(self, seed=seed) if self.seed is None else self


@dataclass(frozen=True)
class Swap:
    """The LoRAs that the pipeline is to have from now on."""

    loras: tuple[Lora, ...]


@dataclass(frozen=True)
class Generation:
    """What one request gave; images, films and sounds are None where none was made, and on ranks other than 0.

    Attributes:
        images: What the stock pipeline returns as images, one an entry.
        report: What the run did.
        seed: The seed of its noise.
        frames: The films: the frames of one film an entry.
        audios: The sounds: the samples of one an entry.
        sampling_rate: Samples a second of the sounds, as far as the pipeline says.
    """

    images: Any
    report: RunReport
    seed: int
    frames: Any = None
    audios: Any = None
    sampling_rate: int | None = None

    def made(self) -> dict[str, Any]:
        """What was made, by name."""
        made = {"images": self.images, "frames": self.frames, "audios": self.audios}
        return {name: value for name, value in made.items() if value is not None}


@dataclass(frozen=True)
class Request:
    """A pickled `Call` or `Swap`; a rank unpickles it where an error is that of this request, not of the connection."""

    id: int
    content: bytes


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for the answer to a request any more; the leader ends it after the step that it is in."""

    id: int


@dataclass(frozen=True)
class Reply:
    """What a rank says about a request; its start is request 0."""

    id: int
    content: Any


@dataclass(frozen=True)
class Started:
    """A rank is ready for requests, or for the next one."""


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
        is_bad_input: It was a ValueError: if all ranks raise the same one, the request is at fault.
        is_echo: It only reports that another rank failed.
        is_lost: The rank can answer no further request.
    """

    kind: str
    text: str
    traceback: str
    is_bad_input: bool = False
    is_echo: bool = False
    is_lost: bool = False


@dataclass(frozen=True)
class Died:
    """A rank's process ended without a word; found by the parent."""

    how: str
    log: str
    is_lost: ClassVar[bool] = True


Answer = Started | Generation | Failed | Died
"""The last word of a rank on a request."""


def pack(message: Any) -> bytes:
    """A message by value (tensors too: no shared memory that would outlive a rank); raises what pickle raises."""
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def send(connection: Connection, message: Any) -> None:
    """Send a message; raises OSError where the other end is gone."""
    connection.send_bytes(pack(message))


def receive(connection: Connection) -> Any:
    """Wait for a message; raises EOFError or OSError where the other end is gone."""
    return pickle.loads(connection.recv_bytes())
