"""A transformer that is given one patch of the picture after another, and keeps keys and values of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from diffusers.hooks import ModelHook

from ..denoiser.blocks import StageDone
from ..denoiser.evaluation import Evaluation
from ..denoiser.layers import Layer
from ..distributed.comm import Heard
from ..sharding.group import ShardGroup
from ..sharding.network import TokenShards
from ..sharding.tokens import Cut, ModuleCuts, TokensHook

_CUTS = {
    "": ModuleCuts({"block_controlnet_hidden_states": Cut(1, 3)}),
    "pos_embed": ModuleCuts(outputs={0: Cut(1, 3)}),
    "proj_out": ModuleCuts(joined=1),
}
"""Where the stream of the picture is cut, and comes together; that of the text stays whole."""


class PatchedNetwork(TokenShards):
    """A transformer such as SD3's, in patches, until its hooks are removed.

    Args:
        network: The network.
        layers: Those whose keys and values are kept: by the rank, or the ranks, of this process.
    """

    def __init__(self, network: torch.nn.Module, layers: Sequence[Layer]) -> None:
        super().__init__(network, _CUTS)
        self._patches = _Patches(tuple(f"{layer.name}." for layer in layers))

    def patch(self, evaluation: Evaluation, index: int = 0, count: int = 1) -> Evaluation:
        """The same call for one of some patches, the picture unless given; to be run in order.

        In attention the patches up to this one are of now, later ones as they were when they last ran. Before the last
        patch the network's forward ends with `StageDone`, and after it has the tokens of all.
        """
        self._patches.index, self._patches.count = index, count
        call = evaluation.calls[0]
        return replace(evaluation, calls=(replace(call, forward=self.shared_by(self._patches, call.forward)),))

    def _hooks(self) -> Iterator[tuple[torch.nn.Module, ModelHook]]:
        for name, cuts in self._cuts.items():
            yield self.network.get_submodule(name), TokensHook(name, cuts)
        yield from self._attention_hooks(text_is_cut=True)


class _Patches(ShardGroup):
    """What the hooks of a network in parts ask, answered by one rank from what it keeps.

    Args:
        kept: Beginnings of the names of the layers that run here.
    """

    def __init__(self, kept: tuple[str, ...]) -> None:
        super().__init__(0, 1)
        self._names = kept
        self._kept: dict[str, torch.Tensor] = {}  # keys and values of the picture, by place
        self._own = slice(0)  # tokens of the running patch
        self._tokens: list[torch.Tensor] = []  # that the network has made

    @property
    def may_exchange(self) -> bool:
        return False  # keys of all heads are kept

    def part(self, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        parts = tensor.tensor_split(self.count, dim)
        start = sum(part.shape[dim] for part in parts[: self.index])
        self._own = slice(start, start + parts[self.index].shape[dim])
        return parts[self.index]

    def start_concatenate(self, place: str, tensor: torch.Tensor, dim: int) -> Callable[[], torch.Tensor]:
        """Keys or values of the whole picture and of the text, of those of the patch and of the text."""
        if not place.startswith(self._names) or not place.endswith(" 1"):
            return lambda: tensor  # nobody has these later, or they are those of an adapter
        own = self._own.stop - self._own.start
        patch, text = tensor.tensor_split([own], dim)
        if self.count == 1:
            self._kept[place] = patch.clone()
            return lambda: tensor
        kept = self._kept[place]
        kept.narrow(dim, self._own.start, own).copy_(patch)
        return lambda: torch.cat((kept, text), dim)

    def join(self, place: str, tensor: torch.Tensor, dim: int) -> torch.Tensor:
        self._tokens = [*(self._tokens if self.index else []), tensor]
        if not self.is_last:
            raise StageDone
        return tensor if self.count == 1 else torch.cat(self._tokens, dim)

    def _start_gather(self, tensor: torch.Tensor, shapes: Sequence[torch.Size]) -> Heard:
        return lambda: [tensor]

    def _all_to_all(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor
