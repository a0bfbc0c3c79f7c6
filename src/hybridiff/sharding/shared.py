"""The networks of a pipeline that ranks may share, hooked once it is asked whether they can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..denoiser.evaluation import Evaluation
from ..denoiser.through import is_compiled
from ..errors import UsageError
from .network import ShardedNetwork, shard_network
from .whole import needs_whole_picture


class SharedNetworks:
    """Networks with the hooks that let ranks share them."""

    def __init__(self) -> None:
        self._sharded: dict[torch.nn.Module, ShardedNetwork | None] = {}
        self._why_whole: dict[torch.nn.Module, str] = {}

    def agree(self, networks: Sequence[torch.nn.Module], told: Sequence[Sequence[str]]) -> None:
        """Leave networks whole on all ranks that one rank cannot cut.

        Args:
            networks: Denoisers and ControlNets.
            told: By each rank, why it cannot cut each of them; empty where it can.
        """
        reasons = [next(filter(None, of_ranks), "") for of_ranks in zip(*told, strict=True)]
        self._why_whole = dict(zip(networks, reasons, strict=True))

    def of(self, network: torch.nn.Module) -> ShardedNetwork | None:
        """A denoiser with its hooks; None where it is not known how it can be cut."""
        if network not in self._sharded:
            self._sharded[network] = shard_network(network)
        return self._sharded[network]

    def hooked(self, network: torch.nn.Module) -> ShardedNetwork:
        """A denoiser that can be cut."""
        sharded = self.of(network)
        assert sharded is not None
        return sharded

    def beside(self, network: torch.nn.Module, shard: Callable[[Any], ShardedNetwork | None]) -> ShardedNetwork | None:
        """Another network, hooked as soon as a denoiser is; None before, or where ranks cannot share it."""
        if self._why_whole.get(network):
            return None
        if network not in self._sharded and any(self._sharded.values()):
            self._sharded[network] = shard(network)
        return self._sharded.get(network)

    def most_parts(self, evaluation: Evaluation) -> int:
        """Into how many parts all calls can be cut."""
        sharded = [(self.of(call.network), call.arguments) for call in evaluation.calls]
        return min(1 if one is None or one.why_whole else one.most_parts(arguments) for one, arguments in sharded)

    def check(self, evaluation: Evaluation, wanted: int) -> None:
        """Refuse an evaluation that cannot be shared by as many as were asked for.

        Raises:
            UsageError: with what would do.
        """
        hidden, name = self.why_hidden(evaluation), type(evaluation.calls[0].network).__name__
        if hidden:
            raise UsageError(f"{hidden}: ranks cannot share images; use shards=1")
        if any(self.of(call.network) is None for call in evaluation.calls):
            raise UsageError(f"it is not known how {name} can be cut into parts of an image; use shards=1")
        if any(needs_whole_picture(call.network, call.arguments) for call in evaluation.calls):
            raise UsageError(
                "masks of IP-Adapters, IP-Adapters of SD3, GLIGEN and FreeU look at the whole image: ranks cannot "
                "share it; use shards=1"
            )
        most = self.most_parts(evaluation)
        if wanted > most:
            raise UsageError(f"shards {wanted} requested, this image can be cut into {most} at most")

    def why_hidden(self, evaluation: Evaluation) -> str:
        """Why what hooks would have to reach lies in graphs; empty where it does not, and hooks are there."""
        if any(is_compiled(call.forward) for call in evaluation.calls):
            return "the network is compiled as a whole, not by its blocks"
        if agreed := next(filter(None, (self._why_whole.get(call.network) for call in evaluation.calls)), ""):
            return agreed
        sharded = [self.of(call.network) for call in evaluation.calls]
        return next((one.why_whole for one in sharded if one is not None and one.why_whole), "")

    def unhook(self, is_for_all: bool = True) -> bool:
        """Take hooks off.

        Args:
            is_for_all: Off all networks; otherwise off those of which modules were compiled since.

        Returns:
            Whether there were any.
        """
        hooked = [(network, sharded) for network, sharded in self._sharded.items() if sharded is not None]
        outdated = [(network, sharded) for network, sharded in hooked if is_for_all or sharded.is_outdated]
        for network, sharded in outdated:
            del self._sharded[network]
            sharded.remove()
        return bool(outdated)
