"""Where one message serves a normalization and the convolution behind it, and where it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D

from hybridiff.sharding.group import ShardGroup, play
from hybridiff.sharding.network import RowShards, shard_network
from hybridiff.sharding.pairs import normalized_convolutions
from hybridiff.sharding.rows import _gathered
from support.networks import NETWORKS, UNETS, evaluation_of
from support.oracles import relative_difference
from support.pipelines import image_vae
from support.shards import CountingGroup, ranks, shared, whole

BLOCKS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "as U-Nets have it": ({}, ["conv1", "conv2"]),
    "halves its rows between": ({"down": True}, ["conv2"]),
    "doubles its rows between": ({"up": True}, ["conv2"]),
    "scales by time between": ({"time_embedding_norm": "scale_shift"}, ["conv1"]),
    "zeros do not stay zeros": ({"act": torch.nn.Sigmoid()}, []),
}
"""Options of a residual block, and which of its convolutions need no message of their own."""


def block_of(options: dict[str, Any]) -> ResnetBlock2D:
    options = dict(options)
    act = options.pop("act", None)
    block = ResnetBlock2D(in_channels=8, temb_channels=6, groups=4, **options)
    if act is not None:
        block.nonlinearity = act
    return block


@pytest.mark.parametrize(("options", "names"), BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_blocks_by_parts(options: dict[str, Any], names: list[str], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    block = block_of(options).to(dtype)
    pairs = normalized_convolutions(block)
    assert list(pairs.values()) == [block.get_submodule(name) for name in names]
    sharded, arguments = RowShards(block, 2), {"input_tensor": torch.randn(2, 8, 12, 5), "temb": torch.randn(2, 6)}
    arguments = {name: 3 * value.to(dtype) + 1 for name, value in arguments.items()}
    group = ranks(3)
    difference = relative_difference(shared(sharded, arguments, group), whole(block, arguments))
    assert difference <= (1e-10 if dtype is torch.float64 else 1e-5)
    sharded.remove()


@pytest.mark.parametrize("name", UNETS)
def test_every_convolution_of_residual_blocks_and_the_last_one_is_paired(name: str) -> None:
    network = NETWORKS[name]()
    blocks = [module for module in network.modules() if isinstance(module, ResnetBlock2D)]
    expected = {conv for block in blocks for conv in (block.conv1, block.conv2)} | {network.conv_out}
    assert set(normalized_convolutions(network).values()) == expected


def test_encoders_and_decoders_are_paired_too() -> None:
    vae = image_vae(levels=3)
    for network in (vae.encoder, vae.decoder):
        assert network.conv_out in normalized_convolutions(network).values()


@pytest.mark.parametrize("name", UNETS)
def test_messages_of_a_unet_once_lengths_are_known(name: str) -> None:
    network = NETWORKS[name]()
    modules = dict(network.named_modules())
    norms = sum(isinstance(module, torch.nn.GroupNorm) for module in modules.values())
    convolutions = sum(isinstance(one, torch.nn.Conv2d) and one.kernel_size[0] > 1 for one in modules.values())
    to_itself = sum(path.endswith("attn1") for path in modules)
    expected = norms + convolutions - len(normalized_convolutions(network)) + to_itself + 1
    sharded, group = shard_network(network), [CountingGroup(index, 2) for index in range(2)]
    assert sharded is not None
    arguments = evaluation_of(network, 1, 16, 11).calls[0].arguments
    shared(sharded, arguments, group)
    before = group[0].messages
    shared(sharded, arguments, group)
    assert group[0].messages - before == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_statistics_and_rows_of_whatever_dtype_in_one_message(dtype: torch.dtype) -> None:
    statistics = [torch.randn(3, 2, 5) / 3 for _ in range(3)]
    rows = [torch.randn(2, 3, 1, 4).to(dtype) for _ in range(3)]

    def work(group: ShardGroup) -> tuple[torch.Tensor, torch.Tensor]:
        said = _gathered(group, statistics[group.index], rows[group.index].transpose(0, 1).transpose(0, 1))
        assert group.received == 2 * (30 * 4 + 24 * dtype.itemsize)
        return said

    for one, other in play(ranks(3), work):
        assert torch.equal(one, torch.stack(statistics))
        assert torch.equal(other, torch.stack(rows))
