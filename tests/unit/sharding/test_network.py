"""Networks as they are before, between and after shared evaluations; and those that are not cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accelerate import cpu_offload
from diffusers.models.attention_processor import AttnProcessor

from hybridiff import UsageError
from hybridiff.sharding.attention import WholeAttention
from hybridiff.sharding.choice import choose_shards
from hybridiff.sharding.network import RowShards, ShardedNetwork, TokenShards, shard_network
from support.networks import NETWORKS, evaluation_of
from support.pipelines import denoiser_of
from support.shards import Arguments, recorded, shared, whole
from zoo import ZOO

CUT = ("sdxl", "sd1.x", "sd3", "FluxPipeline", "WanPipeline", "LTXPipeline", "HeliosPipeline")

UNCUT = (
    "IFPipeline",
    "KandinskyV22Pipeline",
    "Kandinsky3Pipeline",
    "StableDiffusionLatentUpscalePipeline",
    "TextToVideoSDPipeline",
    "PixArtAlphaPipeline",
    "ZImagePipeline",
)


def network_and_call(name: str) -> tuple[Any, Arguments]:
    if name not in NETWORKS:
        return recorded(name)
    network = NETWORKS[name]()
    return network, evaluation_of(network, 1, 16, 11 if "sd3" not in name else 12).calls[0].arguments


def attributes(network: torch.nn.Module) -> dict[str, set[str]]:
    return {name: set(vars(module)) for name, module in network.named_modules()}


def sharded_network(network: torch.nn.Module) -> ShardedNetwork:
    sharded = shard_network(network)
    assert sharded is not None
    return sharded


@pytest.mark.parametrize("name", CUT)
def test_hooks_change_nothing_without_a_group_and_leave_nothing_behind(name: str) -> None:
    network, arguments = network_and_call(name)
    before, alone = attributes(network), whole(network, arguments)
    sharded = sharded_network(network)
    shared(sharded, arguments, 2)
    assert torch.equal(whole(network, arguments), alone)
    sharded.remove()
    assert attributes(network) == before
    assert torch.equal(whole(network, arguments), alone)
    sharded.remove()  # once more does no harm


@pytest.mark.parametrize("name", UNCUT)
def test_what_cannot_be_cut_is_not(name: str) -> None:
    network = denoiser_of(ZOO[name].build())
    before = attributes(network)
    assert shard_network(network) is None
    assert attributes(network) == before


def test_kinds() -> None:
    assert isinstance(shard_network(NETWORKS["sd1.x"]()), RowShards)
    assert isinstance(shard_network(NETWORKS["sd3.5"]()), TokenShards)


@pytest.mark.parametrize("name", ["sd1.x", "sdxl"])
def test_attention_that_does_not_come_by_is_refused(name: str) -> None:
    network, arguments = network_and_call(name)
    network.set_attn_processor(AttnProcessor())
    with pytest.raises(UsageError, match=r"attn1 does not attend by scaled_dot_product_attention.*by 2 devices"):
        shared(sharded_network(network), arguments, 2)


def offloaded(network: Any) -> None:
    cpu_offload(network, torch.device("cpu"))


def cast(network: Any) -> None:
    network.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)


@pytest.mark.parametrize("hook", [offloaded, cast])
@pytest.mark.parametrize("is_later", [False, True])
def test_layers_whose_weights_others_bring_are_not_cut(hook: Callable[[Any], None], is_later: bool) -> None:
    network, arguments = network_and_call("sd1.x")
    if not is_later:
        hook(network)
    sharded = sharded_network(network)
    assert not sharded.is_outdated
    if is_later:
        assert sharded.why_whole == ""
        hook(network)
        assert sharded.is_outdated
        sharded.remove()
        sharded = sharded_network(network)
    assert "layers of UNet2DConditionModel have hooks of others" in sharded.why_whole
    torch.testing.assert_close(
        whole(network, arguments), whole(network_and_call("sd1.x")[0], arguments), atol=0.2, rtol=0.2
    )


def test_causal_attention_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network, arguments = network_and_call("sd3")
    sharded = sharded_network(network)
    own = WholeAttention.__torch_function__

    def with_order(self: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        causal = {"is_causal": True} if func is F.scaled_dot_product_attention else {}
        return own(self, func, types, args, (kwargs or {}) | causal)

    monkeypatch.setattr(WholeAttention, "__torch_function__", with_order)
    with pytest.raises(UsageError, match="attends in order \\(causally\\), which cannot be shared; use shards=1"):
        shared(sharded, arguments, 2)


@pytest.mark.parametrize(
    ("ranks", "rows", "most", "shards"),
    [
        (2, 2, 8, 1),
        (3, 2, 8, 3),
        (4, 2, 8, 2),
        (6, 2, 8, 3),
        (8, 2, 8, 4),
        (4, 3, 8, 4),
        (2, 1, 8, 2),
        (8, 1, 8, 8),
        (4, 4, 8, 1),
        (8, 2, 3, 2),
        (8, 1, 3, 2),
        (8, 1, 1, 1),
        (3, 2, 2, 1),
        (1, 2, 8, 1),
    ],
)
def test_shards_are_chosen(ranks: int, rows: int, most: int, shards: int) -> None:
    assert choose_shards(ranks, rows, most) == shards
