"""What it costs that ranks share an evaluation: the slowest part by itself, and the messages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from ..distributed.comm import Heard
from ..distributed.wires import uninterrupted
from ..utils.clock import timed
from .group import ShardGroup, ThreadGroup

_REPEATS = 3
_MESSAGES = 16
_LONG = 2**20
"""Bytes of the messages that show the rate."""


@dataclass(frozen=True)
class Link:
    """What messages between the ranks of a group cost.

    Attributes:
        latency: Seconds of a short message in the middle of work, waiting for the slower rank included.
        rate: Bytes a second that a rank receives of long ones.
    """

    latency: float = 0.0
    rate: float = math.inf

    @classmethod
    def measure(cls, group: ShardGroup, device: torch.device) -> Link:
        """By messages of 16 bytes and of a megabyte; to be called by all ranks of a group."""
        short, long = (torch.zeros(size // 4, device=device) for size in (16, _LONG))
        matrix = torch.ones(192, 192, device=device)

        def in_turns(message: Callable[[], object]) -> None:
            for _ in range(_MESSAGES):
                matrix @ matrix
                message()

        def heard(tensor: torch.Tensor) -> object:  # what is joined of it is counted with the part
            with uninterrupted():
                return group.start_gather(tensor, [tensor.shape] * group.count)()

        apart = _seconds(lambda: in_turns(lambda: None), device)
        latency = max(0.0, _seconds(lambda: in_turns(lambda: heard(short)), device) - apart) / _MESSAGES
        received = (group.count - 1) * long.nbytes
        return cls(latency, received / max(1e-9, _seconds(lambda: heard(long), device) - latency))

    def seconds(self, messages: int, received: int) -> float:
        """Of some messages, one after the other, in which a rank receives so many bytes."""
        return messages * self.latency + received / self.rate


@dataclass(frozen=True)
class ShardCosts:
    """What a rank of a group has to do in an evaluation that the group shares, or in a stage of one.

    Attributes:
        whole: Seconds of the whole evaluation by one rank, of all its stages.
        part: Seconds of the slowest part by itself, what every rank computes alike included.
        messages: Number of messages in the middle of the network.
        received: Bytes that a rank receives in them.
        link: What messages cost; nothing where ranks are played.
    """

    whole: float
    part: float
    messages: int
    received: int
    link: Link

    @property
    def share(self) -> float:
        """Time when shared, as a share of the whole evaluation by one rank: of that itself at best 1 / shards."""
        return (self.part + self.link.seconds(self.messages, self.received)) / self.whole

    def to_dict(self) -> dict[str, Any]:
        """The costs as plain data, ready for JSON."""
        link = {name: value for name, value in asdict(self.link).items() if math.isfinite(value)}
        return asdict(self) | {"share": self.share, "link": link}


class PartAlone(ShardGroup):
    """One part by itself: what the others would say is what it says itself, or anything where lengths differ.

    Args:
        like: The rank whose part it is, which has taken part in an evaluation of the same form.

    Attributes:
        messages: Number of messages of the latest evaluation.
    """

    def __init__(self, like: ShardGroup) -> None:
        super().__init__(like.index, like.count)
        self._lengths = dict(like._lengths)
        self.messages = 0

    def begin(self, form: object) -> None:
        self.messages = self.sent = 0

    def _start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        self.messages += 1
        said = [tensor if shape == tensor.shape else tensor.new_empty(shape) for shape in shapes]
        return lambda: said

    def _all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        self.messages += 1
        return tensor.clone()


def measure_shards(
    members: Sequence[ShardGroup],
    whole: Callable[[], object],
    part: Callable[[ShardGroup], object],
    device: torch.device,
) -> ShardCosts:
    """Time an evaluation that a group has shared, by itself; to be called by all ranks of the group.

    Args:
        members: The ranks of the group that this process plays.
        whole: Evaluates all of it.
        part: Evaluates the part of a rank.
        device: Where.
    """
    link = Link() if isinstance(members[0], ThreadGroup) else Link.measure(members[0], device)
    seconds = min(_told(members[0], _seconds(whole, device, _REPEATS), device))
    return measure_part(ShardCosts(seconds, 0.0, 0, 0, link), members, part, device)


def measure_part(
    costs: ShardCosts, members: Sequence[ShardGroup], part: Callable[[ShardGroup], object], device: torch.device
) -> ShardCosts:
    """The same where other work is done of the parts, such as that of one stage; `whole` and `link` stay."""
    alone = [PartAlone(member) for member in members]
    slowest = max(_seconds(lambda rank=rank: part(rank), device, _REPEATS) for rank in alone)  # type: ignore[misc]
    slowest = max(_told(members[0], slowest, device))
    return replace(costs, part=slowest, messages=alone[0].messages, received=alone[0].received)


def _told(member: ShardGroup, seconds: float, device: torch.device) -> list[float]:
    """What each process of a group has measured."""
    if isinstance(member, ThreadGroup):
        return [seconds]
    with uninterrupted():
        told: list[float] = member.all_gather(torch.tensor([seconds], device=device)).flatten().tolist()
    return told


def _seconds(work: Callable[[], object], device: torch.device, repeats: int = 2 * _REPEATS) -> float:
    """Median of some repeats after one that warms up."""
    work()
    return median(timed(work, device) for _ in range(repeats))
