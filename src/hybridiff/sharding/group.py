"""The ranks that share one evaluation, and how they talk in the middle of a network."""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from types import EllipsisType
from typing import Any, TypeVar

import torch

from ..denoiser.through import left_to_others
from ..distributed.comm import Comm, Heard

T = TypeVar("T")

Gather = Callable[[torch.Tensor, Sequence[torch.Size]], Heard]
"""See `ShardGroup.start_gather`."""

_MOST_FORMS = 32
"""Forms of evaluations whose lengths a group keeps: the latest ones."""


class ShardGroup(ABC):
    """Ranks that evaluate the same rows together, each on its part of the picture.

    All of them come by the same places in the same order. What a place says has one form on all ranks, or differs in
    length only, along one dimension.

    Args:
        index: Which part this rank has.
        count: Number of parts.

    Attributes:
        sent: Bytes that all ranks sent each other so far, lengths left out.
        kept: What layers keep until the run ends, each under a key of its own.
    """

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count
        self.sent = 0
        self.kept: dict[Hashable, Any] = {}
        self._lengths: dict[str, tuple[int, ...]] = {}
        self._lengths_of: dict[Hashable, dict[str, tuple[int, ...]]] = {}

    @property
    def received(self) -> int:
        """Bytes that a rank received of the others so far, on average."""
        return self.sent // self.count

    @property
    def may_exchange(self) -> bool:
        """Whether layers may say things by `all_to_all`, too."""
        return True

    @property
    def is_first(self) -> bool:
        """Whether nothing of the picture comes before this part."""
        return self.index == 0

    @property
    def is_last(self) -> bool:
        """Whether nothing of the picture comes after this part."""
        return self.index == self.count - 1

    def begin(self, form: Hashable) -> None:
        """An evaluation begins; lengths learned at places hold for all evaluations of its form.

        Args:
            form: What decides all lengths, such as the shape of the sample; the same on all ranks.
        """
        self._lengths = self._lengths_of.pop(form, {})
        self._lengths_of[form] = self._lengths  # behind all others, as the latest
        if len(self._lengths_of) > _MOST_FORMS:
            del self._lengths_of[next(iter(self._lengths_of))]

    def part(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part of a tensor that all ranks have; parts differ by at most one in length."""
        return tensor.tensor_split(self.count, dim)[self.index]

    def concatenate(self, place: str, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """The parts of all ranks, one after the other.

        Args:
            place: Names the place in the network.
            tensor: This rank's part.
            dim: The dimension along which parts may differ in length.
        """
        return self.start_concatenate(place, tensor, dim)()

    def start_concatenate(self, place: str, tensor: torch.Tensor, dim: int) -> Callable[[], torch.Tensor]:
        """The same, under way while this rank computes what it needs nobody for; nothing else may be said meanwhile.

        Returns:
            Waits for the parts.
        """
        return self._one_after_other(self.start_gather, place, tensor, dim)

    def join(self, place: str, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        """The same of an output, which is never displaced."""
        return self.concatenate(place, tensor, dim)

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """What all ranks say at a place, of one form: (count, ...)."""
        return torch.stack(self.start_gather(tensor, [tensor.shape] * self.count)())

    def start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        """Begin to say something; nothing else may be said until what all ranks say is heard.

        Args:
            tensor: What this rank says.
            shapes: Of what all ranks say, in order.

        Returns:
            Waits for what all ranks say, in order; it lasts until this rank speaks again.
        """
        self._count(tensor, shapes)
        return self._start_gather(tensor, shapes)

    def gather_in_background(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        """The same, for as long as this rank likes, who must not change the tensor meanwhile; what is heard lasts."""
        self._count(tensor, shapes)
        return self._gather_in_background(tensor, shapes)

    def changed_alike(self, said: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Numbers in the latest message, as they should be now: where those of others are displaced, a guess.

        Args:
            said: By all ranks, (count, ...).
            own: By this one.
        """
        return said

    def all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """What each rank says to this one, (count, ...), of one form.

        Args:
            tensor: What this rank says to each, (count, ...).
        """
        self.sent += (self.count - 1) * tensor.nbytes
        return self._all_to_all(tensor.contiguous())

    def lengths(self, place: str, mine: int) -> tuple[int, ...]:
        """The lengths that the ranks have at a place; they are told once for each form of an evaluation."""
        if place not in self._lengths:
            self._lengths[place] = tuple(self._tell(mine))
        return self._lengths[place]

    def _tell(self, number: int) -> list[int]:
        """A number of each rank."""
        shape = torch.Size([1])
        return [int(said) for said in self._start_gather(torch.tensor([number]), [shape] * self.count)()]

    def _one_after_other(self, start: Gather, place: str, tensor: torch.Tensor, dim: int) -> Callable[[], torch.Tensor]:
        before, (_, *behind) = tensor.shape[:dim], tensor.shape[dim:]
        hear = start(
            tensor, [torch.Size((*before, length, *behind)) for length in self.lengths(place, tensor.shape[dim])]
        )
        return lambda: torch.cat(hear(), dim)

    def _count(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> None:
        self.sent += (self.count - 1) * sum(shape.numel() for shape in shapes) * tensor.element_size()

    def _gather_in_background(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        return self._start_gather(tensor, shapes)

    @abstractmethod
    def _start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        """See `start_gather`."""

    @abstractmethod
    def _all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        """See `all_to_all`; the tensor is contiguous."""


class ProcessGroup(ShardGroup):
    """One rank in a process of its own.

    Args:
        comm: The ranks of the group.
        device: Where messages have to be.
    """

    def __init__(self, comm: Comm, device: torch.device) -> None:
        super().__init__(comm.rank, comm.size)
        self._comm, self.device = comm, device

    def _tell(self, number: int) -> list[int]:
        return self._comm.all_gather_object(number)  # by way of the host: a GPU would be waited for without a deadline

    def _start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        return self._comm.start_gather(tensor.to(self.device), shapes)

    def _gather_in_background(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        return self._comm.gather_in_background(tensor.to(self.device), shapes)

    def _all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        mine = tensor.to(self.device)
        out = torch.empty_like(mine)
        self._comm.all_to_all({self.index: mine.view(-1)}, {self.index: out.view(-1)})
        return out


class _Table:
    """Where threads meet: each puts down what it has to say, and takes what all have said."""

    def __init__(self, count: int) -> None:
        self._said: dict[int, torch.Tensor] = {}
        self._barrier = threading.Barrier(count)
        self.turn = threading.Lock()  # one rank works at a time: torch.compile is not for several threads at once

    def exchange(self, index: int, tensor: torch.Tensor, piece: int | EllipsisType) -> list[torch.Tensor]:
        self._said[index] = tensor
        self._meet()
        said = [self._said[other][piece].clone() for other in sorted(self._said)]
        self._meet()
        return said

    def _meet(self) -> None:
        with left_to_others():
            self.turn.release()
            try:
                self._barrier.wait()
            finally:
                self.turn.acquire()

    def leave(self) -> None:
        """Let nobody wait for this thread any more."""
        self._barrier.abort()


class ThreadGroup(ShardGroup):
    """One rank of several that a process plays, in a thread of its own (`play`)."""

    table: _Table

    def _start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        said = self.table.exchange(self.index, tensor, ...)
        return lambda: said

    def _all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.stack(self.table.exchange(self.index, tensor, self.index))


def play(ranks: Sequence[ThreadGroup], work: Callable[[ThreadGroup], T]) -> list[T]:
    """What every rank makes of some work, in order, with the caller's settings of torch; raises what a rank raises."""
    table, results, errors = _Table(len(ranks)), {}, []
    settings = _ThreadSettings()

    def run(rank: ThreadGroup) -> None:
        try:
            with table.turn, settings.taken_over():
                results[rank.index] = work(rank)
        except threading.BrokenBarrierError:
            pass  # another thread failed
        except BaseException as error:
            errors.append(error)
            table.leave()

    for rank in ranks:
        rank.table = table
    threads = [threading.Thread(target=run, args=(rank,), name=f"shard {rank.index}") for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank.index] for rank in ranks]


class _ThreadSettings:
    """What torch keeps for each thread: number of its own threads, stream, grad and inference mode, autocast."""

    def __init__(self) -> None:
        self._threads = torch.get_num_threads()
        self._stream = None if not torch.cuda.is_initialized() else torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        kinds = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
        self._autocast = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in kinds]

    @contextlib.contextmanager
    def taken_over(self) -> Iterator[None]:
        torch.set_num_threads(self._threads)
        with contextlib.ExitStack() as stack:
            if self._stream is not None:
                stack.enter_context(torch.cuda.stream(self._stream))  # and its device
            stack.enter_context(torch.inference_mode(self._inference))
            stack.enter_context(torch.set_grad_enabled(self._grad))
            for kind, dtype, enabled in self._autocast:
                stack.enter_context(torch.autocast(kind, dtype, enabled))
            yield
