"""One evaluation of a network by several ranks in threads, and calls of real pipelines to try it with."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from hybridiff.denoiser.call import bind_arguments
from hybridiff.distributed.comm import Heard
from hybridiff.sharding.group import ThreadGroup, play
from hybridiff.sharding.network import ShardedNetwork, shard_network
from support.pipelines import denoiser_of
from zoo import ZOO, run

Arguments = dict[str, Any]


class CountingGroup(ThreadGroup):
    """Counts its messages."""

    messages = 0

    def _start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        self.messages += 1
        return super()._start_gather(tensor, shapes)


def ranks(parts: int) -> list[ThreadGroup]:
    """Ranks that have a part of the picture each."""
    return [ThreadGroup(index, parts) for index in range(parts)]


def whole(network: torch.nn.Module, arguments: Mapping[str, Any]) -> torch.Tensor:
    """What the network predicts, unshared: the oracle."""
    return predicted(network(**fresh(arguments)))


def shared(sharded: ShardedNetwork, arguments: Mapping[str, Any], group: int | Sequence[ThreadGroup]) -> torch.Tensor:
    """What ranks predict together; all of them the same."""
    members = ranks(group) if isinstance(group, int) else group
    forward = sharded.network.forward

    def work(rank: ThreadGroup) -> torch.Tensor:
        return predicted(sharded.shared_by(rank, forward)(**fresh(arguments)))

    first, *others = play(members, work)
    assert all(torch.equal(first, other) for other in others)
    return first


def predicted(answer: Any) -> torch.Tensor:
    """The one tensor of an answer, whatever its form."""
    if isinstance(answer, torch.Tensor):
        return answer
    tensor = answer[0] if isinstance(answer, tuple) else answer.sample
    assert isinstance(tensor, torch.Tensor)
    return tensor


def fresh(arguments: Mapping[str, Any]) -> Arguments:
    """The same arguments in lists of their own: stock networks take residuals out of those that they are given."""
    return {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}


def of_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Arguments whose numbers are of a dtype, however deep; integers and masks stay what they are."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {name: of_dtype(item, dtype) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(of_dtype(item, dtype) for item in value)
    return value


@functools.cache
def recorded(name: str, **changes: Any) -> tuple[Any, Arguments]:
    """The network of a specimen of the zoo, and the first call that its pipeline makes of it."""
    specimen = ZOO[name]
    pipe = specimen.build()
    network = denoiser_of(pipe)
    calls: list[Arguments] = []
    forward: Callable[..., Any] = network.forward

    def recording(*args: Any, **kwargs: Any) -> Any:
        calls.append(fresh(bind_arguments(forward, args, kwargs)))
        return forward(*args, **kwargs)

    network.forward = recording
    run(specimen, pipe, steps=1, **changes)
    del network.forward
    return network, calls[0]


@functools.cache
def in_dtype(name: str, dtype: torch.dtype, **changes: Any) -> tuple[ShardedNetwork, Arguments]:
    """The same with its network ready to be shared, network and arguments in a dtype."""
    network, arguments = recorded(name, **changes)
    sharded = shard_network(copy.deepcopy(network).to(dtype))
    assert sharded is not None
    return sharded, of_dtype(arguments, dtype)


def is_as_exact_as_whole(name: str, dtype: torch.dtype, parts: int, slack: float = 1.5) -> bool:
    """Whether parts in a narrow dtype are as close to what float64 makes of the same weights as the whole is."""
    sharded, arguments = in_dtype(name, dtype)
    network = copy.deepcopy(recorded(name)[0]).to(dtype).double()
    exact = whole(network, of_dtype(arguments, torch.float64))
    apart, together = shared(sharded, arguments, parts).double(), whole(sharded.network, arguments).double()
    return bool((apart - exact).norm() <= slack * (together - exact).norm())
