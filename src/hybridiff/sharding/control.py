"""ControlNets of which each rank evaluates what its part of the denoiser is given."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import PatchEmbed
from torch import nn

from ..denoiser.control import InParts
from ..denoiser.deferred import mapped
from ..denoiser.replay import tensors_in
from ..denoiser.through import compiled_blocks, is_compiled
from .group import ShardGroup
from .network import Forward, RowShards, ShardedNetwork, TokenShards, is_plain
from .place import PartTensor, current_group, in_parts
from .shared import SharedNetworks
from .tokens import Cut, ModuleCuts


def shard_controlnet(network: Any) -> ShardedNetwork | None:
    """A ControlNet, or several in one module, with the hooks that it needs; None where it has to be evaluated whole."""
    nets = list(getattr(network, "nets", [network]))
    kinds = {type(net).__name__ for net in nets}
    if kinds == {"ControlNetModel"}:
        pools = any(net.config.global_pool_conditions for net in nets)
        return ControlShards(network, nets) if is_plain(network) and not pools else None
    # A token for the kind of condition would come before each part of the text; a picture for tokens is convolved.
    if kinds == {"SD3ControlNetModel"} or (
        kinds == {"FluxControlNetModel"} and not any(net.union or net.input_hint_block for net in nets)
    ):
        patches = (name for name, module in network.named_modules() if isinstance(module, PatchEmbed))
        return TokenShards(network, {"": _TOKENS} | dict.fromkeys(patches, ModuleCuts(outputs={0: Cut(1, 3)})))
    return None


_TOKENS = ModuleCuts(
    dict.fromkeys(("hidden_states", "encoder_hidden_states", "controlnet_cond"), Cut(1, 3))
    | dict.fromkeys(("img_ids", "txt_ids"), Cut(0, 2))
)
"""What such transformers are given of tokens, and of their places."""


class ControlShards(RowShards):
    """ControlNets of a U-Net, by the same rows.

    Args:
        network: All of them.
        nets: Each of them, with as many levels.
    """

    pictures = frozenset({"controlnet_cond"})

    def __init__(self, network: nn.Module, nets: list[Any]) -> None:
        super().__init__(network, 2 ** (len(nets[0].config.block_out_channels) - 1))
        self._scales = {2 ** (len(net.config.conditioning_embedding_out_channels) - 1) for net in nets}

    def _most_parts(self, arguments: Mapping[str, Any]) -> int:
        heights = {one.shape[2] for one in tensors_in(arguments["controlnet_cond"])}
        fits = heights == {self._picture(arguments).shape[2] * scale for scale in self._scales}
        # In guess mode pipelines put zeros, of the whole picture, before the residuals.
        return super()._most_parts(arguments) if fits and not arguments.get("guess_mode") else 1

    def run(self, group: ShardGroup, forward: Forward, arguments: dict[str, Any]) -> Any:
        return forward(**self._part(group, arguments))


def controls_in_parts(networks: SharedNetworks) -> InParts:
    """What ControlNets run within a call of a pipeline: as a rank evaluates its part of the denoiser, that part."""
    has_graphs = functools.cache(lambda network: any(compiled_blocks(network)))  # once a call: it has many modules

    def in_parts_of(network: nn.Module, forward: Forward) -> Forward:
        sharded = None if is_compiled(forward) or has_graphs(network) else networks.beside(network, shard_controlnet)
        return by_parts(sharded, forward)

    return in_parts_of


def by_parts(sharded: ShardedNetwork | None, forward: Forward) -> Forward:
    """A ControlNet's forward; where a rank has a part of the picture the output is that part, in `PartTensor`.

    Args:
        sharded: The ControlNet; None where it is evaluated whole, whoever asks.
        forward: Its forward, to be given arguments by name, in order.
    """

    @functools.wraps(forward)
    def control(**arguments: Any) -> Any:
        group = current_group()
        if group is None or sharded is None or sharded.most_parts(arguments) < group.count:
            with in_parts(None):
                return forward(**arguments)
        output = sharded.shared_by(group, forward)(**arguments)
        return mapped(output, lambda leaf: leaf.as_subclass(PartTensor) if isinstance(leaf, torch.Tensor) else leaf)

    return control
