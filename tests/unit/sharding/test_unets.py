"""U-Nets by rows: what ranks make of their parts together is what the whole network makes."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from hybridiff.sharding import rows
from hybridiff.sharding.group import ShardGroup, ThreadGroup
from hybridiff.sharding.network import ShardedNetwork, shard_network
from support.networks import ATTENTION, NETWORKS, PLAIN, UNETS, evaluation_of, unet
from support.oracles import relative_difference
from support.shards import Arguments, in_dtype, of_dtype, ranks, shared, whole

BY_LEVELS = {3: [(2, 8), (2, 9), (3, 13), (4, 18)], 4: [(2, 16), (2, 17), (2, 22), (3, 25), (4, 37)]}
"""Parts and rows for so many levels: even parts, uneven ones, odd heights, rows of no whole number of units."""

CASES = [(name, *case) for name, levels in (("sdxl", 3), ("sd1.x", 4), ("sd2.x", 4)) for case in BY_LEVELS[levels]]

ADAPTED = (
    "StableDiffusionAdapterPipeline",
    "StableDiffusionXLAdapterPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLPipeline:ip-adapter",
)
"""Specimens whose U-Nets are given more than sample and text."""


@functools.cache
def network_of(name: str, dtype: torch.dtype = torch.float32) -> ShardedNetwork:
    sharded = shard_network(NETWORKS[name]().to(dtype))
    assert sharded is not None
    return sharded


def arguments_of(sharded: ShardedNetwork, images: int, height: int, extras: bool = False) -> Arguments:
    evaluation = evaluation_of(sharded.network, images, height, 11, extras=extras)
    dtype = next(sharded.network.parameters()).dtype
    arguments: Arguments = of_dtype(evaluation.calls[0].arguments, dtype)
    return arguments


def difference(sharded: ShardedNetwork, arguments: Arguments, parts: int) -> float:
    return relative_difference(shared(sharded, arguments, parts), whole(sharded.network, arguments))


@pytest.mark.parametrize(("name", "parts", "height"), CASES)
def test_parts_are_the_whole_to_rounding(name: str, parts: int, height: int) -> None:
    sharded = network_of(name)
    arguments = arguments_of(sharded, 1 + 2 * (parts == 2), height)
    assert sharded.most_parts(arguments) >= parts
    assert difference(sharded, arguments, parts) <= 1e-5


@pytest.mark.parametrize(("name", "parts", "height"), CASES)
def test_parts_are_the_whole_in_float64_with_residuals_of_a_controlnet(name: str, parts: int, height: int) -> None:
    sharded = network_of(name, torch.float64)
    assert difference(sharded, arguments_of(sharded, 1, height, extras=True), parts) <= 1e-10


def test_parts_are_as_exact_as_the_whole_in_bfloat16() -> None:
    network = unet([ATTENTION, PLAIN], layers_per_block=1).to(torch.bfloat16)
    exact = copy.deepcopy(network).double()
    sharded = shard_network(network)
    assert sharded is not None
    arguments = arguments_of(sharded, 1, 10)
    expected = whole(exact, of_dtype(arguments, torch.float64))
    apart, together = shared(sharded, arguments, 3).double(), whole(network, arguments).double()
    assert (apart - expected).norm() <= 1.5 * (together - expected).norm()


@pytest.mark.parametrize("name", ADAPTED)
@pytest.mark.parametrize("parts", [2, 3])
def test_what_adapters_add_has_rows_too(name: str, parts: int) -> None:
    sharded, arguments = in_dtype(name, torch.float64, height=64, width=32)
    assert sharded.most_parts(arguments) >= parts
    assert difference(sharded, arguments, parts) <= 1e-10


@pytest.mark.parametrize("name", UNETS)
def test_a_group_evaluates_calls_of_other_shapes_in_turn(name: str) -> None:
    sharded, group = network_of(name), ranks(2)
    for images, height in ((1, 17), (2, 16), (1, 22), (1, 17)):
        arguments = arguments_of(sharded, images, height)
        expected = whole(sharded.network, arguments)
        assert relative_difference(shared(sharded, arguments, group), expected) <= 1e-5


def blank_neighbours(
    group: ShardGroup, picture: torch.Tensor, said: torch.Tensor, padding: tuple[int, int]
) -> torch.Tensor:
    """The rows around a part, zeros instead of what its neighbours have there."""
    return EXTENDED(group, picture, torch.zeros_like(said), padding)


EXTENDED = rows._extended


def first_statistics(said: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the first part by itself."""
    mean, variance = said[0]
    return mean, variance


def own_keys(group: ThreadGroup, place: str, tensor: torch.Tensor, dim: int) -> Callable[[], torch.Tensor]:
    """Outputs of all parts, but keys of this one."""
    return STARTED(group, place, tensor, dim) if place == "output" else lambda: tensor


STARTED = ThreadGroup.start_concatenate


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize(
    ("owner", "attribute", "fault"),
    [
        (rows, "_extended", blank_neighbours),
        (rows, "_of_all", first_statistics),
        (ThreadGroup, "start_concatenate", own_keys),
    ],
    ids=["blank neighbours", "statistics of one part", "own keys"],
)
def test_faults_are_found_out(
    name: str, owner: Any, attribute: str, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, attribute, fault)
    sharded = network_of(name)
    assert difference(sharded, arguments_of(sharded, 1, 16), 2) > 1e-3
